"""k steps, a state loaded into fresh objects, and the rest: bit for bit the run without a break."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r1kernels.hf import patch
from r1train.config.grpo import GRPOConfig
from r1train.config.model import ModelConfig
from r1train.config.sections import Config
from r1train.config.sft import SFTConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.grpo import Learner
from r1train.learn.optim import Optimizer
from r1train.learn.sft import SupervisedLearner
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.seeds import deterministic
from tests.r1train.conftest import TEXTS

GRPO = GRPOConfig(
    max_steps=5,
    num_generations=4,
    num_minibatches=2,
    num_iterations=2,
    learning_rate=1e-2,
    beta=0.1,
    ref_model_sync_steps=2,
    expert_bias_update_rate=0.1,
    token_budget=60,
    warmup_steps=1,
)
REWARDS = [1, 0, 0, 2, 0, 1, 1, 0]


@pytest.fixture(autouse=True)
def exact():
    with deterministic():
        yield


def grpo(model):
    return Learner(Policy(model), GRPO, temperature=1.0, max_completion_length=8, seed=3)


def grpo_step(learner, tokenizer, prompts):
    engine = BuiltinEngine(learner.policy.model, tokenizer)
    requests = [Request(prompt, 4, 10 * i + learner.steps) for i, prompt in enumerate(prompts[1:3])]
    rollout = engine.generate(requests, Sampling(8))
    return learner.step(rollout, REWARDS)


def sft(model):
    config = SFTConfig(max_steps=5, learning_rate=1e-2, expert_bias_update_rate=0.1)
    return SupervisedLearner(Policy(model), config)


def sft_step(learner, tokenizer, prompts):
    completions = [[5 + learner.optimizer.done, 6, 7], [8], [9, 10], [11]]
    return learner.step(prompts, completions)


@pytest.mark.parametrize(
    ("done", "dtype"),
    [(1, torch.float32), (2, torch.float32), (3, torch.float32), (2, torch.bfloat16)],
)
@pytest.mark.parametrize(("make", "step"), [(grpo, grpo_step), (sft, sft_step)])
def test_a_run_goes_on_as_if_it_had_not_stopped(mini, prompts, make, step, done, dtype):
    model, tokenizer = mini
    model.to(dtype)
    fresh = copy.deepcopy(model)
    learner = make(model)
    whole = [step(learner, tokenizer, prompts) for _ in range(done)]
    state = copy.deepcopy(learner.state_dict())
    whole += [step(learner, tokenizer, prompts) for _ in range(4 - done)]
    again = make(fresh)
    again.load_state_dict(state)
    rest = [step(again, tokenizer, prompts) for _ in range(4 - done)]
    assert rest == whole[done:]
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_adapters_go_on_as_if_they_had_not_stopped(prompts, dtype, gradient_checkpointing):
    """After two steps the reference has just become the policy."""
    pytest.importorskip("peft")
    options = {"lora_rank": 4, "gradient_checkpointing": gradient_checkpointing}
    config = Config(model=ModelConfig(preset="deepseek-v3-mini", **options), dtype=dtype)

    def make():
        model, tokenizer = load_model(config, TEXTS)
        policy = Policy(model, gradient_checkpointing=gradient_checkpointing)
        return Learner(policy, GRPO, temperature=1.0, max_completion_length=8), tokenizer

    learner, tokenizer = make()
    whole = [grpo_step(learner, tokenizer, prompts) for _ in range(2)]
    state = copy.deepcopy(learner.state_dict())
    whole += [grpo_step(learner, tokenizer, prompts) for _ in range(2)]
    again, _ = make()
    again.load_state_dict(state)
    assert [grpo_step(again, tokenizer, prompts) for _ in range(2)] == whole[2:]
    expected, found = (each.policy.model.state_dict() for each in (learner, again))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_state_is_of_plain_data_by_name(mini):
    model, _ = mini
    state = grpo(model).state_dict()
    names = {name for name, _ in model.named_parameters()}
    assert names <= state["policy"].keys()
    assert state["reference"].keys() == state["policy"].keys()
    learner = sft(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step(1.0)
    moments = learner.state_dict()["optimizer"]["parameters"]
    assert moments.keys() == names
    assert all(own.keys() == {"step", "exp_avg", "exp_avg_sq"} for own in moments.values())


def tiny(dtype=torch.float32):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, num_attention_heads=2, **shape)
    return patch(LlamaForCausalLM(config).to(dtype).eval())


def test_bfloat16_weights_follow_a_float32_copy():
    """Steps that are each too small to move a weight add up."""
    config = SFTConfig(max_steps=100, learning_rate=1e-5, lr_scheduler_type="constant")
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(dtype)
        learner = SupervisedLearner(Policy(model), replace(config, warmup_ratio=0.0))
        before = model.lm_head.weight.detach().clone()
        for _ in range(100):
            learner.step([[1, 2]], [[3, 4]])
        weights.append((model.lm_head.weight.detach() - before).float())
    exact, rounded = weights
    along = (rounded * exact).sum() / exact.square().sum()
    assert along == pytest.approx(1, abs=0.05)


def test_parts_of_an_update_add_up_in_float32():
    model = tiny(torch.bfloat16)
    Optimizer(model, SFTConfig(), 1, 0)
    Policy(model).model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
