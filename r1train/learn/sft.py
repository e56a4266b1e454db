"""The supervised phase: next-token prediction on worked solutions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from operator import add
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1kernels import linear_cross_entropy
from r1kernels.hf import head_of
from r1train.config.schema import ConfigError
from r1train.config.sections import SFTConfig
from r1train.data.demonstrations import demonstration
from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem
from r1train.learn.batch import micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.model.forward import completion_hidden
from r1train.model.limits import check_sequences, positions
from r1train.model.routing import recording
from r1train.seeds import derive_seed


class Supervisor:
    """Trains on batches of fresh demonstrations, `config.max_steps` of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        config: SFTConfig,
        *,
        template: str,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.problems = model, tokenizer, problems
        self.config, self.template, self.seed, self.done = config, template, seed, 0
        warmup = int(config.warmup_ratio * config.max_steps)
        self.optimizer = Optimizer(model, config, config.max_steps, warmup)
        self.load = ExpertLoad(model, config.expert_bias_update_rate)

    def step(self) -> dict[str, float]:
        """One update; returns its metrics."""
        config, tokenizer = self.config, self.tokenizer
        rng = random.Random(derive_seed(self.seed, "sft", self.done))
        chosen = [rng.choice(self.problems) for _ in range(config.batch_size)]
        prompts = encode_prompts(tokenizer, chosen, self.template)
        texts = [demonstration(problem, config, rng) + tokenizer.eos_token for problem in chosen]
        completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
        _check(self.model, tokenizer, prompts, completions)
        loss = accumulate(self.model, prompts, completions, config.token_budget, self.load)
        self.done += 1
        return {"loss": loss, **self.optimizer.step(), **self.load.step()}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
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


def accumulate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    token_budget: int,
    load: ExpertLoad,
) -> float:
    """Adds the gradient of the mean cross-entropy of all completion tokens; returns that mean.

    What each expert had to do is added to `load`.
    """
    total, count = 0.0, sum(map(len, completions))
    for rows in micro_batches(prompts, completions, token_budget):
        part, record = [prompts[row] for row in rows], recording(model)
        hidden, target, _ = completion_hidden(
            model, part, [completions[row] for row in rows], record
        )
        if record is not None:
            load.add(record.sequences(part))
        head = head_of(model)
        loss = linear_cross_entropy(
            head.rows(hidden), head.weight, target, reduction="sum", **head.options
        )
        loss = loss / count
        loss.backward()
        total += loss.item()
    return total
