"""The supervised phase: next-token prediction on demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1kernels import linear_cross_entropy
from r1kernels.hf import head_of
from r1train.config.schema import ConfigError
from r1train.config.sections import SFTConfig
from r1train.data.demonstrations import Demonstration, Demonstrations
from r1train.learn.batch import micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.model.forward import completion_hidden
from r1train.model.limits import check_sequences, positions
from r1train.model.routing import recording


class Supervisor:
    """Trains on demonstrations, `config.max_steps` batches of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        demonstrations: Demonstrations,
        config: SFTConfig,
    ) -> None:
        self.model, self.tokenizer, self.demonstrations = model, tokenizer, demonstrations
        self.config, self.done = config, 0
        warmup = int(config.warmup_ratio * config.max_steps)
        self.optimizer = Optimizer(model, config, config.max_steps, warmup)
        self.load = ExpertLoad(model, config.expert_bias_update_rate)

    def step(self) -> dict[str, float]:
        """One update; returns its metrics."""
        batch = self.demonstrations.batch(self.done)
        _check(self.model, self.tokenizer, batch)
        loss = accumulate(self.model, batch, self.config.token_budget, self.load)
        self.done += 1
        return {"loss": loss, **self.optimizer.step(), **self.load.step()}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
        self.optimizer.load_state_dict(state["optimizer"])


def _check(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Demonstration]
) -> None:
    check_sequences(model, tokenizer, chain(*((d.prompt, d.completion) for d in batch)))
    longest, limit = max(batch, key=_length), positions(model)
    if limit is not None and _length(longest) > limit:
        raise ConfigError(
            f"{longest.where}: the prompt and what is to be said have {_length(longest)} tokens, "
            f"and the model {limit} positions: make it shorter, or leave it out"
        )


def _length(demonstration: Demonstration) -> int:
    return len(demonstration.prompt) + len(demonstration.completion)


def accumulate(
    model: PreTrainedModel,
    batch: Sequence[Demonstration],
    token_budget: int,
    load: ExpertLoad,
) -> float:
    """Adds the gradient of the mean cross-entropy of all tokens to learn; returns that mean.

    What each expert had to do is added to `load`.
    """
    prompts, completions = [d.prompt for d in batch], [d.completion for d in batch]
    total, count = 0.0, sum(sum(d.learned) for d in batch)
    for rows in micro_batches(prompts, completions, token_budget):
        part, record = [prompts[row] for row in rows], recording(model)
        hidden, target, _ = completion_hidden(
            model, part, [completions[row] for row in rows], record
        )
        if record is not None:
            load.add(record.sequences(part))
        learned = torch.tensor([flag for row in rows for flag in batch[row].learned])
        target = target.masked_fill(~learned.to(target.device), -100)  # what does not count
        head = head_of(model)
        loss = linear_cross_entropy(
            head.rows(hidden), head.weight, target, reduction="sum", **head.options
        )
        loss = loss / count
        loss.backward()
        total += loss.item()
    return total
