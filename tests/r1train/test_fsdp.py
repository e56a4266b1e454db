"""A learner whose model FSDP2 shards, over one rank: what is past the module's call would fail."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from r1train.config.grpo import GRPOConfig
from r1train.config.sft import SFTConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sync import WeightSync
from r1train.learn.grpo import Learner
from r1train.learn.sft import SupervisedLearner
from r1train.model.policy import Policy

GRPO = GRPOConfig(
    max_steps=4,
    num_generations=4,
    num_minibatches=2,
    learning_rate=1e-3,
    beta=0.1,
    ref_model_sync_steps=1,
    token_budget=40,
)
REWARDS = [1, 0, 0, 2, 0, 1, 1, 0]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model):
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensors):
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("packs", [True, False])
def test_a_sharded_learner_learns_the_same(mini, prompts, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr("r1train.model.policy.why_not_packed", lambda policy: "to be padded")
    model, tokenizer = mini
    requests = [Request(prompt, 4, seed) for seed, prompt in enumerate(prompts[1:3])]
    rollout = BuiltinEngine(model, tokenizer).generate(requests, Sampling(8))
    again = copy.deepcopy(model)
    found = []
    for policy in (Policy(model), Policy(sharded(again))):
        learner = Learner(policy, GRPO, temperature=1.0, max_completion_length=8)
        figures = learner.step(rollout, REWARDS)
        supervised = SupervisedLearner(policy, SFTConfig(max_steps=3, learning_rate=1e-3))
        figures |= supervised.step(prompts, [[5, 6, 7], [8], [9, 10], [11]])
        state = copy.deepcopy(learner.state_dict())
        learner.load_state_dict(state)
        assert state["optimizer"]["parameters"].keys() == dict(model.named_parameters()).keys()
        found.append((figures, dict(policy.weights()), whole(learner.reference)))
    (figures, weights, reference), (figures_, weights_, reference_) = found
    assert isinstance(next(again.parameters()), DTensor)
    assert figures_ == pytest.approx(figures, rel=1e-4, abs=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_[name], tensor, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(reference_[name], reference[name], atol=1e-5, rtol=1e-4)


def test_an_engine_is_sent_whole_weights(mini, prompts):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer, dtype=torch.bfloat16)
    policy = Policy(sharded(model))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    WeightSync(engine, policy, prompts[1:3])(1)
    expected = model.lm_head.weight.full_tensor().bfloat16()
    assert torch.equal(engine.model.lm_head.weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_layers_are_sharded_too(mini, prompts, dtype):
    model = mini[0].to(dtype)
    policy = Policy(sharded(model), gradient_checkpointing=True)
    learner = SupervisedLearner(policy, replace(SFTConfig(), max_steps=3, learning_rate=1e-3))
    losses = [learner.step(prompts, [[5, 6, 7], [8], [9, 10], [11]])["loss"] for _ in range(3)]
    assert losses[2] < losses[0]
