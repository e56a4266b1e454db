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

    from r1train.engine.base import Rollout
    from r1train.engine.builtin import Engine
    from r1train.learn.grpo import Learner


def update(task: Task) -> Callable[[], tuple[Tensor, ...]]:
    """A step of the learner, and the gradients that it would have given to its optimizer."""
    learner = learner_of(task.model, task.group, task.token_budget)
    return partial(learn, learner, sampled(learner.model, task), task.rewards)


def learn(learner: Learner, rollout: Rollout, rewards: list[float]) -> tuple[Tensor, ...]:
    from r1train.seeds import deterministic

    with deterministic():  # as in a run
        figures = learner.step(rollout, rewards)
    loss = torch.tensor(figures["loss"], device=learner.model.device)
    return loss, *take_gradients(learner.model)


def rollout(task: Task) -> Callable[[], tuple[Tensor]]:
    """What the engine decodes: tokens [B, N]."""
    return partial(decode, engine_of(task.model), task)


def decode(engine: Engine, task: Task) -> tuple[Tensor]:
    from r1train.seeds import deterministic

    with deterministic():
        texts = engine.generate(task.prompts, max_new_tokens=task.longest, temperature=0)
    return (torch.tensor(texts.completion_ids, device=engine.model.device),)


@lru_cache(maxsize=1)
def engine_of(model: PreTrainedModel) -> Engine:
    from r1train.engine.builtin import Engine

    never = SimpleNamespace(eos_token_id=-1)  # all that the engine asks of a tokenizer
    return Engine(patched(model), never, batch_size=1024)


@lru_cache(maxsize=1)
def learner_of(model: PreTrainedModel, group: int, token_budget: int) -> Learner:
    """A learner whose weights stay."""
    from r1train.config.sections import GRPOConfig
    from r1train.learn.grpo import Learner

    config = GRPOConfig(
        num_generations=group,
        loss_type=LOSS_TYPE,
        epsilon=EPSILON,
        beta=0.0,
        expert_bias_update_rate=0.0,
        token_budget=token_budget,
    )
    # The longest completion matters to dr_grpo alone.
    learner = Learner(patched(model), config, temperature=1.0, max_completion_length=1)
    learner.optimizer = NoStep()
    return learner


@torch.no_grad()
def sampled(model: PreTrainedModel, task: Task) -> Rollout:
    """The texts, and what an engine would have said of them."""
    from r1train.data.encode import distinct
    from r1train.engine.base import Rollout
    from r1train.model.forward import completion_hidden
    from r1train.model.routing import recording

    record = recording(model)
    hidden, target, cu_seqlens = completion_hidden(model, task.prompts, task.completions, record)
    logprobs = r1kernels.linear_logprob(hidden, model.lm_head.weight, target).logprob
    prompts, prompt_index = distinct(task.prompts)
    return Rollout(
        [list(prompt) for prompt in prompts],
        prompt_index,
        target,
        cu_seqlens,
        logprobs,
        [True] * len(task.completions),
        record and record.sequences(task.prompts),
    )


class NoStep:
    """In the place of the learner's optimizer: weights and gradients stay as they are."""

    def step(self) -> dict[str, float]:
        return {}


def patched(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as r1train loads it."""
    from r1kernels.hf import patch_moe

    found = copy.deepcopy(model)
    patch_moe(found)
    return found


OURS: dict[str, Callable[[Task], Callable[[], tuple[Tensor, ...]]]] = {
    "update": update,
    "rollout": rollout,
}
