"""On-policy distillation: the learner on its own, and as a stage of a recipe."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from r1train.config.distill import DistillConfig
from r1train.config.schema import ConfigError
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.distill import OnPolicyDistiller
from r1train.model.policy import Policy
from r1train.run import trainer
from r1train.run.folder import RunFolder
from r1train.run.runner import resume, run
from r1train.seeds import deterministic
from r1train.stages.on_policy_distill import check_vocabularies
from tests.r1train.kills import left

CONFIG = DistillConfig(
    max_steps=5, num_generations=2, num_minibatches=2, learning_rate=1e-3, token_budget=60,
    lr_scheduler_type="constant", expert_bias_update_rate=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def exact():
    with deterministic():
        yield


def other(model):
    """A teacher: the student with other weights."""
    teacher = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=rng))
    return teacher.requires_grad_(False)


def distiller(model, teacher):
    return OnPolicyDistiller(Policy(model), Policy(teacher), CONFIG, temperature=0.8, seed=3)


def rollout(model, tokenizer, prompts, seed=0):
    engine = BuiltinEngine(model, tokenizer)
    requests = [Request(prompt, 2, 10 * i + seed) for i, prompt in enumerate(prompts[1:])]
    return engine.generate(requests, Sampling(8, temperature=0.8))


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_a_student_that_is_the_teacher_has_nothing_to_learn(mini, prompts):
    model, tokenizer = mini
    learner = distiller(model, copy.deepcopy(model).requires_grad_(False))
    sampled = rollout(model, tokenizer, prompts)
    figures = learner.accumulate(sampled.prompt_ids, sampled.completion_ids)
    assert figures["kl"] == 0
    assert not any(gradient.any() for gradient in gradients(model).values())


def test_the_gradient_is_that_of_whole_logits(mini, prompts):
    """Of a plain forward pass over each sequence, by autograd."""
    model, tokenizer = mini
    teacher = other(model)
    learner = distiller(model, teacher)
    sampled = rollout(model, tokenizer, prompts)
    figures = learner.accumulate(sampled.prompt_ids, sampled.completion_ids)
    found = gradients(model)
    model.zero_grad()

    total = 0
    for prompt, completion in zip(sampled.prompt_ids, sampled.completion_ids, strict=True):
        ids = torch.tensor([[*prompt, *completion[:-1]]])
        q = (teacher(ids).logits[0, len(prompt) - 1 :] / 0.8).log_softmax(-1)
        p = (model(ids).logits[0, len(prompt) - 1 :] / 0.8).log_softmax(-1)
        total = total + F.kl_div(q, p, reduction="sum", log_target=True)
    mean = total / len(sampled.tokens)
    mean.backward()
    torch.testing.assert_close(figures["kl"], mean.detach(), rtol=1e-4, atol=1e-6)
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_neither_the_token_budget_nor_the_order_changes_the_gradient(mini, prompts):
    model, tokenizer = mini
    learner, sampled = distiller(model, other(model)), rollout(model, tokenizer, prompts)
    found = []
    for order in (slice(None), slice(None, None, -1)):
        learner.accumulate(sampled.prompt_ids[order], sampled.completion_ids[order])
        found.append(gradients(model))
        model.zero_grad()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_a_step_lowers_the_divergence(mini, prompts):
    model, tokenizer = mini
    learner, sampled = distiller(model, other(model)), rollout(model, tokenizer, prompts)
    before = learner.step(sampled)["kl"]
    after = learner.accumulate(sampled.prompt_ids, sampled.completion_ids)["kl"]
    assert after < 0.9 * before


@pytest.mark.parametrize("done", [1, 3])
def test_a_run_goes_on_as_if_it_had_not_stopped(mini, prompts, done):
    """Broken off between two updates of one rollout."""
    model, tokenizer = mini
    fresh, teacher = copy.deepcopy(model), other(model)
    learner, whole = distiller(model, teacher), []
    for step in range(4):
        sampled = rollout(model, tokenizer, prompts, step)
        learner.start(sampled)
        learner.update()
        if step == done:
            state, kept = copy.deepcopy(learner.state_dict()), sampled
        learner.update()
        whole.append(learner.finish())
    again = distiller(fresh, teacher)
    again.start(kept)
    again.load_state_dict(state)
    again.update()
    rest = [again.finish()]
    for step in range(done + 1, 4):
        rest.append(again.step(rollout(fresh, tokenizer, prompts, step)))
    assert rest == whole[done:]
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.state_dict().items())


DISTILL = (
    "stages=[{kind='sft', name='teacher', evaluate=false}, {kind='on_policy_distill', "
    "init='preset:deepseek-v3-mini', evaluate=false}]",
    "distill.teacher=stage:teacher",
    *("distill.max_steps=3", "distill.prompts_per_step=2", "distill.num_generations=3"),
    *("distill.num_minibatches=2", "distill.learning_rate=3e-3"),
)


def test_a_stage_learns_from_the_stage_before(config, tmp_path):
    run(config(*DISTILL))
    folder = tmp_path / "runs" / "tiny" / "on_policy_distill"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["kl"] > 0 and line["completions/mean_length"] > 0 for line in lines)
    assert (folder / "checkpoint" / "model.safetensors").is_file()


def test_a_stage_that_is_broken_off_within_a_step_ends_the_same(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)  # a checkpoint after every update
    monkeypatch.setattr(RunFolder, "plot", lambda self: [])
    run(config(*DISTILL, f"output_dir={tmp_path}/unbroken"))
    update, updates = OnPolicyDistiller.update, []

    def broken_off(self):
        updates.append(self.pending)
        if len(updates) == 4:
            raise KeyboardInterrupt
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(OnPolicyDistiller, "update", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run(config(*DISTILL))
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "on_policy_distill" / "checkpoint-1-1").is_dir()
    resume(folder)
    assert left(folder) == left(tmp_path / "unbroken" / "tiny")


def test_a_stage_needs_a_teacher_that_is_there(config, tmp_path):
    with pytest.raises(ConfigError, match=r"distill.teacher is not set: on_policy_distill needs"):
        run(config("stages=['on_policy_distill']"))
    with pytest.raises(ConfigError, match=r"distill.teacher = 'nowhere': expected a HuggingFace"):
        run(config("stages=['on_policy_distill']", "distill.teacher=nowhere"))
    assert not (tmp_path / "runs").exists()


def test_another_vocabulary_is_refused(mini):
    _, tokenizer = mini
    strange = copy.deepcopy(tokenizer)
    strange.add_tokens(["<strange>"])
    check_vocabularies("teacher", copy.deepcopy(tokenizer), tokenizer)
    reason = r"distill.teacher = 'teacher': its vocabulary is not the student's: 1 tokens differ, s"
    with pytest.raises(ConfigError, match=reason):
        check_vocabularies("teacher", strange, tokenizer)
