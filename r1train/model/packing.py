"""Sequences in one row: every distinct prompt once, then the completions, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from r1kernels.hf import Packing, pack_segments
from r1train.data.encode import distinct


@dataclass(frozen=True, eq=False)
class Packed:
    """B completions of P distinct prompts, as N tokens that go through a model in one pass.

    Segments are the prompts, then the completions, those of a prompt next to each other; the last
    token of a completion predicts nothing and is left out. T counts the tokens of completions.
    """

    prompts: list[tuple[int, ...]]
    """[P]"""
    prompt_index: list[int]
    """[B]: which of them each completion continues."""
    completions: Sequence[Sequence[int]]
    """[B]"""
    ids: Tensor
    """int64 [N]"""
    positions: Tensor
    """int64 [N]: of each token in its sequence, from 0."""
    packing: Packing
    """Of the segments, for the attention."""
    predictors: Tensor
    """int64 [T]: the token of the row whose hidden state predicts each token of a completion."""
    target: Tensor
    """int64 [T]: the tokens of the completions, in the order that they were given in."""
    cu_completions: Tensor
    """int32 [B + 1]: completion i is `target[cu_completions[i]:cu_completions[i + 1]]`."""

    @cached_property
    def by_prompt(self) -> list[int]:
        """[B]: the completions in the order of their segments."""
        return sorted(range(len(self.prompt_index)), key=self.prompt_index.__getitem__)

    @cached_property
    def from_row(self) -> Tensor:
        """int64 [S], on the CPU: of the S tokens of all sequences, one after another, the token of
        the row that each of them is; a sequence is its prompt and its completion but the last."""
        starts = [0, *accumulate(map(len, self.prompts))]
        begins = accumulate(
            (len(self.completions[i]) - 1 for i in self.by_prompt), initial=starts[-1]
        )
        begin_of = dict(zip(self.by_prompt, begins, strict=False))
        parts = [
            torch.arange(first, first + length)
            for row, prompt in enumerate(self.prompt_index)
            for first, length in (
                (starts[prompt], len(self.prompts[prompt])),
                (begin_of[row], len(self.completions[row]) - 1),
            )
        ]
        return torch.cat(parts)

    @cached_property
    def into_row(self) -> Tensor:
        """int64 [N], on the CPU: the way back, with the first sequence of each prompt."""
        heads = [len(self.prompts[prompt]) for prompt in self.prompt_index]
        lengths = [h + len(c) - 1 for h, c in zip(heads, self.completions, strict=True)]
        starts = [0, *accumulate(lengths)]
        first = [self.prompt_index.index(prompt) for prompt in range(len(self.prompts))]
        parts = [torch.arange(starts[row], starts[row] + heads[row]) for row in first]
        parts += [torch.arange(starts[row] + heads[row], starts[row + 1]) for row in self.by_prompt]
        return torch.cat(parts)


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> Packed:
    """Completion i follows prompt i; equal prompts become one. None of them may be empty."""
    shared, prompt_index = distinct(prompts)
    order = sorted(range(len(prompt_index)), key=prompt_index.__getitem__)
    bodies = [completions[row][:-1] for row in order]
    index = torch.tensor(prompt_index)
    heads = torch.tensor([len(prompt) for prompt in shared])
    lengths = torch.tensor([len(completion) for completion in completions])
    ordered = torch.tensor(order)

    segments = torch.cat([heads, lengths[ordered] - 1])
    ends = segments.cumsum(0)
    ids = torch.tensor([*chain.from_iterable(shared), *chain.from_iterable(bodies)])
    offsets = torch.cat([torch.zeros_like(heads), heads[index[ordered]]])  # of first positions
    positions = torch.arange(len(ids)) - (ends - segments - offsets).repeat_interleave(segments)

    begins = torch.empty_like(lengths)
    begins[ordered] = (ends - segments)[len(shared) :]
    stops = lengths.cumsum(0)
    starts = stops - lengths
    predictors = torch.arange(sum(map(len, completions))) + (begins - 1 - starts).repeat_interleave(
        lengths
    )
    predictors[starts] = ends[index] - 1  # the prompt's last token predicts the first

    def placed(tensor: Tensor) -> Tensor:
        if torch.device(device).type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    zero = torch.zeros(1, dtype=torch.int64)
    prefix = [-1] * len(shared) + [prompt_index[row] for row in order]
    return Packed(
        shared,
        prompt_index,
        completions,
        placed(ids),
        placed(positions),
        pack_segments(segments.tolist(), prefix, device),
        placed(predictors),
        placed(torch.tensor([*chain.from_iterable(completions)])),
        placed(torch.cat([zero, stops]).int()),
    )
