"""The supervised phase: next-token prediction on worked solutions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from operator import add
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1kernels import linear_cross_entropy
from r1kernels.hf import Head
from r1train.config.schema import ConfigError
from r1train.config.sections import SFTConfig
from r1train.data.demonstrations import demonstration
from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem
from r1train.learn.batch import micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.metrics import Pending
from r1train.model.limits import check_sequences, positions
from r1train.model.packing import pack
from r1train.model.policy import Policy, copy
from r1train.model.routing import recording
from r1train.seeds import derive_seed

Loss: TypeAlias = tuple[Tensor, None]


def supervise(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: SFTConfig,
    *,
    template: str,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Trains on `config.max_steps` batches of fresh demonstrations; yields the metrics of each."""
    learner = SupervisedLearner(policy, config)
    for step in range(config.max_steps):
        rng = random.Random(derive_seed(seed, "sft", step))
        chosen = [rng.choice(problems) for _ in range(config.batch_size)]
        prompts = encode_prompts(tokenizer, chosen, template)
        texts = [demonstration(problem, config, rng) + tokenizer.eos_token for problem in chosen]
        completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
        _check(policy.model, tokenizer, prompts, completions)
        yield learner.step(prompts, completions)


class SupervisedLearner:
    """Next-token prediction on completions: one `step` for every batch."""

    def __init__(self, policy: Policy, config: SFTConfig) -> None:
        self.policy, self.config = policy, config
        warmup = int(config.warmup_ratio * config.max_steps)
        self.optimizer = Optimizer(policy.model, config, config.max_steps, warmup)
        self.load = ExpertLoad(policy.model, config.expert_bias_update_rate)

    def step(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy of all tokens of the completions."""
        pending = Pending()
        loss = self.accumulate(prompts, completions)
        pending.add({"loss": loss, "grad_norm": self.optimizer.clip(), **self.load.figures()})
        (figures,) = pending.read()
        self.load.step()
        return figures | self.optimizer.step(figures["grad_norm"])

    def accumulate(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Tensor:
        """Adds the gradient of that mean, and what each expert had to do; returns the mean []."""
        total = torch.zeros((), device=self.policy.device)
        count = sum(map(len, completions))
        for rows in micro_batches(prompts, completions, self.config.token_budget):
            part = [prompts[row] for row in rows]
            packed = pack(part, [completions[row] for row in rows], self.policy.device)

            def loss(hidden: Tensor, head: Head, target: Tensor = packed.target) -> Loss:
                summed = linear_cross_entropy(
                    head.rows(hidden), head.weight, target, reduction="sum", **head.options
                )
                return summed / count, None

            record = recording(self.policy.model)
            mean, _ = self.policy.accumulate(packed, loss, record)
            if record is not None:
                self.load.add(record.sequences(part))
            total += mean
        return total

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: the weights too, all of it by name.

        Tensors are those in use: copy or write them before the next step.
        """
        return {"policy": self.policy.moving(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration must be the same."""
        copy(state["policy"], self.policy.moving())
        self.optimizer.load_state_dict(state["optimizer"])


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
) -> None:
    check_sequences(model, tokenizer, completions)
    longest, limit = max(map(len, map(add, prompts, completions))), positions(model)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"a problem and its worked solution have {longest} tokens, and the model {limit} "
            "positions: make the problems of task.datasets shorter"
        )
