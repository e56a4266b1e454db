"""Completions to train on, and their division into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B completions; row i of every field belongs to completion i."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    advantages: Tensor  # [B]
    sampling_logprobs: list[Tensor]
    old_logprobs: list[Tensor] | None = None
    routing: list[Tensor] | None = None  # of a mixture of experts

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.completions))

    def take(self, rows: Sequence[int]) -> Batch:
        def pick(items: Sequence[Any]) -> list[Any]:
            return [items[row] for row in rows]

        return replace(
            self,
            prompts=pick(self.prompts),
            completions=pick(self.completions),
            advantages=self.advantages[list(rows)],
            sampling_logprobs=pick(self.sampling_logprobs),
            old_logprobs=None if self.old_logprobs is None else pick(self.old_logprobs),
            routing=None if self.routing is None else pick(self.routing),
        )


def distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The distinct prompts in the order they come in, and which of them each prompt is."""
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    return list(row_of), [row_of[tuple(prompt)] for prompt in prompts]


def micro_batches(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], token_budget: int
) -> list[list[int]]:
    """Rows in parts of at most `token_budget` tokens, padding and prompts included.

    Rows are sorted by length first, so that little of a part is padding. A row that is longer than
    the budget makes a part of its own.
    """

    def shape(row: int) -> tuple[int, int]:
        return len(completions[row]), len(prompts[row])

    parts: list[list[int]] = []
    completion = prompt = 0
    for row in sorted(range(len(completions)), key=shape):
        completion, prompt = shape(row)[0], max(prompt, shape(row)[1])
        if not parts or (len(parts[-1]) + 1) * (completion + prompt) > token_budget:
            parts.append([])
            prompt = shape(row)[1]
        parts[-1].append(row)
    return parts
