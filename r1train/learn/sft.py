"""The supervised phase: next-token prediction on demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

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


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Demonstrations,
    config: SFTConfig,
) -> Iterator[dict[str, float]]:
    """Trains on `config.max_steps` batches of demonstrations; yields the metrics of each."""
    optimizer = Optimizer(
        model, config, config.max_steps, int(config.warmup_ratio * config.max_steps)
    )
    load = ExpertLoad(model, config.expert_bias_update_rate)
    for step in range(config.max_steps):
        batch = demonstrations.batch(step)
        _check(model, tokenizer, batch)
        loss = accumulate(model, batch, config.token_budget, load)
        yield {"loss": loss, **optimizer.step(), **load.step()}


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
