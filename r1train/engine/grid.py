"""How the rows of a batch lie: in groups of one size that share a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

WASTE = 1.125
"""Slots for each row that is sampled, at most, when groups are made as large as they can be."""


@dataclass(frozen=True)
class Grid:
    """S groups of `group` slots: slot s is in group s // group."""

    group: int
    prompts: tuple[int, ...]
    """[S]: the prompt that the rows of each group continue. A prompt may have several groups."""
    rows: tuple[int, ...]
    """[S · group]: the row in each slot; −1 where there is none."""

    def slots_of(self, other: Grid) -> list[int]:
        """[S · group]: where each row lies in `other`; 0 for the slots that are empty."""
        place = {row: slot for slot, row in enumerate(other.rows) if row >= 0}
        return [place.get(row, 0) for row in self.rows]

    def groups_of(self, other: Grid) -> list[int]:
        """[S]: a group of `other` that has the same prompt."""
        place = {prompt: group for group, prompt in enumerate(other.prompts)}
        return [place[prompt] for prompt in self.prompts]


def most_slots(device: torch.device) -> float:
    """For each row, in the grids of a device."""
    return WASTE if device.type == "cpu" else 2 * WASTE


def arrange(rows: Sequence[int], prompt_of: Sequence[int], *, powers_of_two: bool = False) -> Grid:
    """A grid of `rows`, row i of which continues the prompt `prompt_of[i]`.

    Rows of a prompt are adjacent. The groups are the largest that leave few slots empty: a group's
    prompt is read once for all of them. With `powers_of_two` the numbers of groups and of their
    slots are such, so that few shapes occur; the slots may then be up to twice as many.
    """
    members = [list(found) for _, found in groupby(rows, prompt_of.__getitem__)]
    counts = [len(found) for found in members]
    sizes = [*range(max(counts), 0, -1)]
    if powers_of_two:
        sizes = [1 << bit for bit in reversed(range(max(counts).bit_length()))]
    group = next(
        size
        for size in sizes
        if size == 1 or size * sum(-(-count // size) for count in counts) <= WASTE * len(rows)
    )
    parts = [found[i : i + group] for found in members for i in range(0, len(found), group)]
    prompts = [prompt_of[part[0]] for part in parts]
    if powers_of_two:
        missing = (1 << (len(parts) - 1).bit_length()) - len(parts)
        parts, prompts = parts + [[]] * missing, prompts + prompts[:1] * missing
    slots = [row for part in parts for row in [*part, *[-1] * (group - len(part))]]
    return Grid(group, tuple(prompts), tuple(slots))
