from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r1kernels.hf import patch, record_routing, routers
from r1train.config.grpo import GRPOConfig
from r1train.config.model import ModelConfig
from r1train.config.sections import Config
from r1train.config.sft import SFTConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.grpo import Learner
from r1train.learn.sft import SupervisedLearner
from r1train.model.load import load_model
from r1train.model.packing import pack
from r1train.model.policy import Policy
from r1train.model.routing import Recording, Replay, recording
from r1train.run.export import save_checkpoint

CONFIG = GRPOConfig(
    max_steps=4, prompts_per_step=2, num_generations=4, learning_rate=1e-3, beta=0.0
)
REWARDS = [1, 0, 0, 2, 0, 1, 1, 0]


@pytest.fixture
def rollout(mini, prompts):
    engine = BuiltinEngine(*mini, batch_size=5)
    engine.stop = torch.arange(1, 290, 13)  # completions of many lengths
    requests = [Request(prompt, 4, seed) for seed, prompt in enumerate(prompts[1:3])]
    return engine.generate(requests, Sampling(12))


@pytest.fixture
def dense(mini):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(mini[1]), num_attention_heads=2, **shape, eos_token_id=1)
    return patch(LlamaForCausalLM(config).eval())


def learner(model, **options):
    config = replace(CONFIG, **options)
    return Learner(Policy(model), config, temperature=1.0, max_completion_length=12, seed=0)


def logprobs(subject, rollout):
    batch = subject._batch(rollout, REWARDS)
    subject._logprobs(batch, range(len(rollout)), batch.old_logprobs)
    return torch.cat(batch.old_logprobs)


def biases(model):
    return torch.stack([router.bias for router in routers(model)])


def choose_otherwise(model):
    """Changes the biases: the choices become others, the scores stay what they were."""
    for router in routers(model):
        router.bias.add_(torch.linspace(-1, 1, router.num_experts))


def tokens(rollout):
    pairs = zip(rollout.prompt_ids, rollout.completion_ids, strict=True)
    return [prompt + completion[:-1] for prompt, completion in pairs]


def test_the_rollout_keeps_what_a_fresh_pass_chooses(mini, rollout):
    model, _ = mini
    assert len({len(sequence) for sequence in tokens(rollout)}) > 3
    for sequence, ids in zip(tokens(rollout), rollout.routing, strict=True):
        with torch.no_grad(), record_routing(model) as record:
            model(torch.tensor([sequence]))
        (fresh,) = record.take()
        assert ids.dtype == torch.int16
        assert ids.shape == (len(sequence), 2, 4)
        assert torch.equal(ids.sort(-1).values, fresh.sort(-1).values)


def test_replay_gives_the_samplers_logprobs_whatever_would_be_chosen_now(mini, rollout):
    model, _ = mini
    choose_otherwise(model)
    for budget in (1, 60, 10_000):
        replayed = logprobs(learner(model, token_budget=budget), rollout)
        torch.testing.assert_close(replayed, rollout.logprobs, atol=1e-4, rtol=0)
    live = logprobs(learner(model, routing_replay=False), rollout)
    assert (live - rollout.logprobs).abs().mean() > 1e-3


def test_a_replayed_choice_trains_the_router_as_the_live_one_did(mini, rollout):
    model, _ = mini
    gate = routers(model)[0].module.weight

    def gradient():
        subject = learner(model)
        subject.optimizer.clip = lambda: torch.zeros(())  # keeps the gradients as they are
        subject.optimizer.step = lambda norm: {}  # and the weights
        subject.load.step = lambda: None  # and the biases
        gate.grad = None
        subject.step(rollout, REWARDS)
        return gate.grad

    before = gradient()
    choose_otherwise(model)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("replay", [True, False])
def test_the_share_of_other_choices_is_logged(mini, rollout, replay, monkeypatch):
    model, _ = mini
    monkeypatch.setattr(Learner, "_check_sampler", lambda *_: None)
    options = {"routing_replay": replay, "learning_rate": 1e-9, "expert_bias_update_rate": 0.0}
    for budget in (60, 10_000):
        metrics = learner(model, **options, token_budget=budget).step(rollout, REWARDS)
        assert metrics["routing/differing"] == 0.0
    choose_otherwise(model)
    assert 0.01 < learner(model, **options).step(rollout, REWARDS)["routing/differing"] < 1


def replayed(model, rollout):
    """What the routers are given in a pass over the rollout that replays its routing."""
    policy = Policy(model)
    batch = pack(rollout.prompt_ids, rollout.completion_ids)
    replay = Replay(model, batch, rollout.routing)
    with torch.no_grad(), record_routing(model) as record:
        policy.run(batch, lambda hidden, head: None, replay)
    return batch, record


def test_a_packed_pass_routes_each_token_once(mini, rollout):
    batch, record = replayed(mini[0], rollout)
    assert record.counts.sum(1).tolist() == [4 * len(batch.ids)] * 2
    assert [len(ids) for ids in record.take()] == [len(batch.ids)]


def test_replayed_padding_goes_to_no_expert(mini, rollout, monkeypatch):
    monkeypatch.setattr("r1train.model.policy.why_not_packed", lambda policy: "to be padded")
    batch, record = replayed(mini[0], rollout)
    assert record.counts.sum(1).tolist() == [4 * len(batch.ids)] * 2
    assert sum(ids.shape[0] for ids in record.take()) > len(batch.ids)


@pytest.mark.parametrize("replay", [True, False])
def test_an_update_moves_every_bias_against_its_load(mini, rollout, replay):
    model, _ = mini
    ids = torch.cat(rollout.routing).long()  # [N, L, k], without padding
    counts = torch.stack([torch.bincount(layer.flatten(), minlength=16) for layer in ids.unbind(1)])
    learner(model, expert_bias_update_rate=0.25, routing_replay=replay).step(rollout, REWARDS)
    assert torch.equal(biases(model), 0.25 * (counts.float().mean(1, keepdim=True) - counts).sign())


def test_the_token_budget_does_not_change_biases_or_loads(mini, rollout):
    model, _ = mini
    found = []
    for budget in (1, 60, 10_000):
        for router in routers(model):
            router.bias.zero_()
        options = {"token_budget": budget, "learning_rate": 1e-9}
        metrics = learner(model, **options).step(rollout, REWARDS)
        load = {name: metrics[name] for name in metrics if name.startswith("expert_load/")}
        found.append((biases(model).tolist(), load))
    assert found[0] == found[1] == found[2]
    assert found[0][1]["expert_load/max_violation"] > 0


def test_supervision_counts_every_token_of_every_sequence(mini, prompts):
    model, tokenizer = mini
    completions = tokenizer(["<think>5", "a longer completion</answer>", "4", "12"])["input_ids"]
    pairs = zip(prompts, completions, strict=True)
    valid = sum(len(prompt) + len(completion) - 1 for prompt, completion in pairs)
    found = []
    for budget in (1, 40, 1000):
        learner = SupervisedLearner(Policy(model), SFTConfig(token_budget=budget))
        learner.accumulate(prompts, completions)
        found.append(learner.load.counts.tolist())
    assert found[0] == found[1] == found[2]
    assert [sum(layer) for layer in found[0]] == [4 * valid] * 2


def test_figures_of_a_known_load(mini):
    model, _ = mini
    load = ExpertLoad(model, 0.5)
    assert load.figures() == {}
    even = torch.arange(16, dtype=torch.int16).view(4, 1, 4).expand(4, 2, 4)
    load.add([even])
    assert load.figures() == {"expert_load/max_violation": 0.0, "expert_load/shortfall": 0.0}
    load.step()
    assert not biases(model).any()
    load.add([even[:2], even[:2]])  # half of the experts, twice
    assert load.figures() == {"expert_load/max_violation": 1.0, "expert_load/shortfall": 1.0}
    load.step()
    assert biases(model).tolist() == [[-0.5] * 8 + [0.5] * 8] * 2


def test_a_reference_keeps_its_own_choices(mini, rollout):
    model, _ = mini
    subject = learner(model, beta=0.1, num_iterations=2, expert_bias_update_rate=0.1)
    before = {name: tensor.clone() for name, tensor in subject.reference.items() if "bias" in name}
    subject.step(rollout, REWARDS)
    assert before
    assert all(torch.equal(subject.reference[name], before[name]) for name in before)
    assert not any(torch.equal(subject.policy.moving()[name], before[name]) for name in before)


def test_a_checkpoint_keeps_small_steps_of_large_biases(mini, tmp_path):
    model, tokenizer = mini
    model.to(torch.bfloat16)
    for router in routers(model):
        router.bias.copy_(5 + torch.arange(16) / 1000)  # bfloat16 would make them all 5
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    source = ModelConfig(path=str(tmp_path / "checkpoint"))
    loaded, _ = load_model(Config(model=source, dtype="bfloat16"))
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert biases(loaded).dtype == torch.float32
    assert torch.equal(biases(loaded), biases(model))


def test_a_dense_model_has_no_routing(mini, dense, prompts):
    rollout = BuiltinEngine(dense, mini[1]).generate([Request(prompts[0], 8)], Sampling(4))
    assert recording(dense) is None
    assert rollout.routing is None
    metrics = learner(dense).step(rollout, REWARDS)
    assert not [name for name in metrics if name.startswith(("routing/", "expert_load/"))]
    assert ExpertLoad(dense, 1e-3).figures() == {}


def test_a_recording_puts_passes_together_by_sequence(mini):
    record = Recording(mini[0])
    record.passes = [torch.arange(n, dtype=torch.int16).view(-1, 1, 1) + 10 * n for n in (3, 2, 1)]
    record.rows = [torch.tensor([0, 0, 1]), torch.tensor([2, 0]), torch.tensor([2])]
    found = [ids.flatten().tolist() for ids in record.sequences([[7, 7], [8], [7, 7]])]
    assert found == [[30, 31, 21], [32], [30, 31, 20, 10]]
