"""r1train's own step of training: its learner on a rollout that is given, and its engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import r1kernels
from benchmarks.train_tasks import EPSILON, LOSS_TYPE, Task, take_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from r1kernels.hf import Head
    from r1train.engine.base import Rollout
    from r1train.engine.builtin import BuiltinEngine
    from r1train.learn.grpo import Learner
    from r1train.model.policy import Policy


def update(task: Task) -> Callable[[], tuple[Tensor, ...]]:
    """A step of the learner, and the gradients that it would have given to its optimizer."""
    from r1train.learn.grpo import Learner

    learner = learner_of(task.model, Learner, task.group, task.token_budget)
    return partial(learn, learner, sampled(learner.policy, task), task.rewards)


def learn(learner: Learner, rollout: Rollout, rewards: list[float]) -> tuple[Tensor, ...]:
    from r1train.seeds import deterministic

    with deterministic():  # as in a run
        figures = learner.step(rollout, rewards)
    model = learner.policy.model
    return torch.tensor(figures["loss"], device=model.device), *take_gradients(model)


def rollout(task: Task) -> Callable[[], tuple[Tensor]]:
    """What the engine decodes: tokens [B, N]."""
    return partial(decode, engine_of(task.model), task)


def decode(engine: BuiltinEngine, task: Task) -> tuple[Tensor]:
    from r1train.engine.base import Request, Sampling
    from r1train.seeds import deterministic

    requests = [Request(prompt, task.group) for prompt in task.prompts[:: task.group]]
    with deterministic():
        texts = engine.generate(requests, Sampling(task.longest, temperature=0))
    return (texts.tokens.view(-1, task.longest),)


@lru_cache(maxsize=1)
def engine_of(model: PreTrainedModel) -> BuiltinEngine:
    from r1train.engine.builtin import BuiltinEngine

    never = SimpleNamespace(eos_token_id=-1)  # all that the engine asks of a tokenizer
    return BuiltinEngine(patched(model), never, batch_size=1024)


@lru_cache(maxsize=2)
def learner_of(
    model: PreTrainedModel, kind: type[Learner], group: int, token_budget: int
) -> Learner:
    """A learner whose weights stay."""
    from r1train.config.grpo import GRPOConfig
    from r1train.model.policy import Policy

    config = GRPOConfig(
        num_generations=group,
        loss_type=LOSS_TYPE,
        epsilon=EPSILON,
        beta=0.0,
        expert_bias_update_rate=0.0,
        token_budget=token_budget,
    )
    # The longest completion matters to dr_grpo alone.
    learner = kind(Policy(patched(model)), config, temperature=1.0, max_completion_length=1)
    learner.optimizer = NoStep()
    return learner


def sampled(policy: Policy, task: Task) -> Rollout:
    """The texts, and what an engine would have said of them."""
    from r1train.engine.base import Rollout
    from r1train.model.packing import pack
    from r1train.model.routing import recording

    record = recording(policy.model)
    packed = pack(task.prompts, task.completions, policy.device)

    def score(hidden: Tensor, head: Head) -> Tensor:
        return r1kernels.linear_logprob(hidden, head.weight, packed.target).logprob

    logprobs = policy.run(packed, score, record)
    return Rollout(
        [list(prompt) for prompt in packed.prompts],
        packed.prompt_index,
        packed.target,
        packed.cu_completions,
        logprobs,
        [True] * len(task.completions),
        record and record.sequences(task.prompts),
    )


class NoStep:
    """In the place of the learner's optimizer: weights and gradients stay as they are."""

    def clip(self) -> Tensor:
        return torch.zeros(())

    def step(self, norm: float) -> dict[str, float]:
        return {}


def patched(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as r1train loads it."""
    from r1kernels.hf import patch
    from r1train.model.products import patch_linear

    model = copy.deepcopy(model)
    patch_linear(model)
    return patch(model)


OURS: dict[str, Callable[[Task], Callable[[], tuple[Tensor, ...]]]] = {
    "update": update,
    "rollout": rollout,
}
