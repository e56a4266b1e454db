"""Completions to train on, and their division into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1train.model.packing import Packed, pack


@dataclass(frozen=True)
class Batch:
    """B completions; item i of every field belongs to completion i."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    advantages: Tensor
    """float32 [B], on the CPU."""
    sampling_logprobs: Sequence[Tensor]
    old_logprobs: list[Tensor | None]
    """Under the policy before the first update; None where they are not known yet."""
    ref_logprobs: list[Tensor | None]
    routing: Sequence[Tensor] | None = None
    """Of a mixture of experts."""


def micro_batches(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], token_budget: int
) -> list[list[int]]:
    """Rows in parts of at most `token_budget` tokens: each prompt of a part once, as it is encoded,
    and the completions without their padding.

    The completions of a prompt stay together, so that it is encoded in one part only; a group that
    is larger than the budget is split, and a row that is makes a part of its own. Groups are taken
    by their longest completion, so that little of a part is padding.
    """
    budgeted = (
        (part, tokens)
        for rows in _groups(prompts)
        for part, tokens in _pieces(rows, prompts, completions, token_budget)
    )
    parts: list[list[int]] = []
    room = 0
    for piece, tokens in sorted(budgeted, key=lambda item: len(completions[item[0][-1]])):
        if not parts or tokens > room:
            parts.append([])
            room = token_budget
        parts[-1] += piece
        room -= tokens
    return parts


def packed_batches(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    token_budget: int,
    device: torch.device,
) -> Iterator[tuple[list[int], Packed]]:
    """The rows of each of `micro_batches`, and these packed."""
    for rows in micro_batches(prompts, completions, token_budget):
        part = [prompts[row] for row in rows], [completions[row] for row in rows]
        yield rows, pack(*part, device)


def _groups(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows of every distinct prompt."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(row)
    return list(rows.values())


def _pieces(
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    token_budget: int,
) -> Iterator[tuple[list[int], int]]:
    """A group by length of its completions, whole if it fits the budget, with its tokens."""
    prompt = len(prompts[rows[0]])
    piece, tokens = list[int](), prompt
    for row in sorted(rows, key=lambda row: len(completions[row])):
        if piece and tokens + len(completions[row]) > token_budget:
            yield piece, tokens
            piece, tokens = [], prompt
        piece.append(row)
        tokens += len(completions[row])
    yield piece, tokens
