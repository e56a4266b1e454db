from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from r1train.config.grpo import GRPOConfig
from r1train.engine.base import NotANumber, Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.grpo import Learner, SamplingMismatch
from r1train.metrics import Pending
from r1train.model.policy import Policy

CONFIG = GRPOConfig(
    max_steps=4, prompts_per_step=4, num_generations=4, learning_rate=1e-3, beta=0.0
)
REWARDS = [1, 0, 0, 2, 1, 1, 1, 1, 0, 1, 2, 1, 0, 0, 0, 0]  # the second and fourth are constant
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "reinforce")


@pytest.fixture
def rollout(mini, prompts):
    engine = BuiltinEngine(*mini)
    engine.stop = torch.arange(1, 290, 13)  # completions of many lengths
    prompts = [prompts[1], prompts[2], prompts[3], prompts[1] + prompts[3]]
    requests = [Request(prompt, 4, seed) for seed, prompt in enumerate(prompts)]
    return engine.generate(requests, Sampling(16))


def learner(model, config, temperature=1.0):
    policy = Policy(model)
    return Learner(policy, config, temperature=temperature, max_completion_length=16, seed=0)


def gradients(model, config, rollout, rewards=REWARDS):
    """The gradient that one step would apply, as one vector."""
    model.zero_grad()
    subject = learner(model, config)
    subject.optimizer.clip = lambda: torch.zeros(())  # keeps the gradients as they are
    subject.optimizer.step = lambda norm: {}  # and the weights
    subject.load.step = lambda: None  # and the experts' biases
    metrics = subject.step(rollout, rewards)
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(flat), metrics


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_neither_budget_nor_padding_changes_the_gradient(
    mini, rollout, loss_type, packs, monkeypatch
):
    model, _ = mini
    whole, metrics = gradients(model, replace(CONFIG, loss_type=loss_type), rollout)
    if not packs:
        monkeypatch.setattr("r1train.model.policy.why_not_packed", lambda policy: "to be padded")
    for budget in (1, 100, 300):
        config = replace(CONFIG, loss_type=loss_type, token_budget=budget)
        parts, again = gradients(model, config, rollout)
        torch.testing.assert_close(parts, whole, atol=1e-5 * whole.abs().max().item(), rtol=1e-3)
        assert again["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
        assert again["entropy"] == pytest.approx(metrics["entropy"], rel=1e-4)


def passes(model):
    """The tokens of each pass through the backbone from now on."""
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda module, arguments, keywords: rows.append(keywords["input_ids"].numel()),
        with_kwargs=True,
    )
    return rows


def tokens(rollout, groups):
    """Of these groups, whose prompts are encoded once and whose last tokens never."""
    rows = [row for row in range(len(rollout)) if rollout.prompt_index[row] in groups]
    prompts = sum(len(rollout.prompts[group]) for group in groups)
    return prompts + sum(rollout.lengths[row] - 1 for row in rows)


def test_a_prompt_is_encoded_once_where_its_group_fits(mini, rollout):
    model, _ = mini
    largest = max(
        sum(rollout.lengths[start : start + 4]) + len(rollout.prompt_ids[start])
        for start in range(0, 16, 4)
    )
    subject = learner(model, replace(CONFIG, token_budget=largest))
    rows = passes(model)
    subject.step(rollout, [0, 0, 0, 1] * 4)
    assert len(rows) > 1
    assert sum(rows) == tokens(rollout, range(4))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_leaving_constant_groups_out_does_not_change_the_gradient(mini, rollout, loss_type):
    model, _ = mini
    config = replace(CONFIG, loss_type=loss_type)
    dropped, metrics = gradients(model, config, rollout)
    assert metrics["frac_reward_zero_std"] == 0.5
    # With a reference that equals the policy the KL term is zero, but every row is computed.
    computed, _ = gradients(model, replace(config, beta=1e-3), rollout)
    torch.testing.assert_close(dropped, computed, atol=1e-5 * dropped.abs().max().item(), rtol=1e-3)


def test_constant_groups_never_reach_the_backbone(mini, rollout):
    model, _ = mini
    subject = learner(model, CONFIG)
    rows = passes(model)
    subject.step(rollout, REWARDS)
    assert rows == [tokens(rollout, [0, 2])]  # two groups out of four, in one pass


class Asked(TorchDispatchMode):
    """Counts the values that Python asks of tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"token_budget": 100}, {"num_minibatches": 2}])
def test_the_figures_of_an_update_are_read_at_once(mini, rollout, options, monkeypatch):
    model, _ = mini
    subject = learner(model, replace(CONFIG, **options))
    reads, inner = [], Pending.read
    monkeypatch.setattr(Pending, "read", lambda self: reads.append(1) or inner(self))
    with Asked() as asked:
        subject.step(rollout, [0, 0, 0, 1] * 4)
    assert asked.count == 0  # but what is read as a list
    assert len(reads) == subject.updates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [16]),  # ratios of the only update are 1
        ({"num_iterations": 2}, [16, 16]),  # the first pass says what the second compares with
        ({"num_minibatches": 4}, [12, 4, 4, 4, 4]),  # what the first update does not make itself
        ({"beta": 0.1, "num_iterations": 2}, [16, 16, 16]),  # the reference, once
    ],
)
def test_no_log_probability_is_computed_twice(mini, rollout, options, expected, monkeypatch):
    model, _ = mini
    counts = []
    subject = learner(model, replace(CONFIG, **options))
    inner = Policy._pass
    monkeypatch.setattr(
        Policy,
        "_pass",
        lambda self, batch, routes: (
            counts.append(len(batch.completions)) or inner(self, batch, routes)
        ),
    )
    subject.step(rollout, [0, 0, 0, 1] * 4)
    assert counts == expected


def test_a_rollout_of_constant_groups_leaves_the_weights_alone(mini, rollout):
    model, _ = mini
    before = [p.clone() for p in model.parameters()]
    subject = learner(model, CONFIG)
    metrics = subject.step(rollout, [1.0] * 16)
    assert metrics["frac_reward_zero_std"] == 1.0
    assert metrics["learning_rate"] == pytest.approx(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    later = learner(model, CONFIG)
    later.optimizer.skip()
    assert later.optimizer.skip()["learning_rate"] < 1e-3  # the schedule moves on


def test_a_step_makes_rewarded_completions_more_likely(mini, rollout):
    model, _ = mini
    subject = learner(model, replace(CONFIG, lr_scheduler_type="constant"))
    rewards = [float(i % 4 == 0) for i in range(16)]
    before = torch.stack([own.mean() for own in rollout.logprobs.split(rollout.lengths)])
    subject.step(rollout, rewards)
    gain = torch.stack([x.mean() for x in logprobs(subject, rollout)]) - before
    assert gain[::4].mean() > 0
    assert gain[::4].mean() > gain.mean()


@pytest.mark.parametrize("options", [{"num_minibatches": 4}, {"num_iterations": 2}])
def test_several_updates_compare_with_the_policy_before_the_first(mini, rollout, options):
    model, _ = mini
    subject = learner(model, replace(CONFIG, **options))
    metrics = subject.step(rollout, REWARDS)
    assert subject.optimizer.done == subject.updates
    assert metrics["sampling_delta_max"] < 1e-3  # of the policy that sampled, not the updated one
    assert metrics["ratio_max"] > 1.0


def test_old_logprobs_are_those_of_the_sampler(mini, rollout):
    model, _ = mini
    for budget in (1, 100, 10_000):
        subject = learner(model, replace(CONFIG, token_budget=budget))
        found = torch.cat(logprobs(subject, rollout))
        torch.testing.assert_close(found, rollout.logprobs, atol=1e-4, rtol=0)


def test_the_reference_is_replaced_every_so_many_steps(mini, rollout):
    model, _ = mini
    subject = learner(model, replace(CONFIG, beta=0.1, ref_model_sync_steps=2))

    def same():
        moving = subject.policy.moving()
        return all(torch.equal(subject.reference[name], moving[name]) for name in moving)

    assert same()
    metrics = subject.step(rollout, REWARDS)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert not same()
    rollout = replace(rollout, logprobs=torch.cat(logprobs(subject, rollout)))
    assert subject.step(rollout, REWARDS)["kl"] > 0
    assert same()


def test_a_sampler_with_other_weights_is_an_error(mini, rollout):
    model, _ = mini
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight *= 1.05  # what the engine did not hear of
    stale = model.lm_head.weight.detach().clone()
    with pytest.raises(SamplingMismatch, match="differ by"):
        learner(model, CONFIG).step(rollout, REWARDS)
    assert torch.equal(model.lm_head.weight, stale)  # found before the update
    with torch.no_grad():
        model.lm_head.weight.copy_(before)
    with pytest.raises(SamplingMismatch, match="temperature"):
        learner(model, CONFIG, temperature=0.7).step(rollout, REWARDS)


def test_weights_that_are_no_numbers_stop_before_the_update(mini, rollout):
    model, _ = mini
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    subject = learner(model, CONFIG)
    subject.optimizer.step = lambda norm: pytest.fail("the weights were changed")
    with pytest.raises(NotANumber, match="weights have diverged"):
        subject.step(rollout, REWARDS)


def logprobs(subject, rollout):
    """Of each completion, under the policy as it is."""
    batch = subject._batch(rollout, [0.0] * len(rollout))
    subject._logprobs(batch, range(len(rollout)), batch.old_logprobs)
    return batch.old_logprobs
