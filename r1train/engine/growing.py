"""Decoding for any model: HuggingFace's own cache, which grows by a token each step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1train.engine.clock import Clock
from r1train.engine.grid import Grid
from r1train.model.forward import extend, prefill


class Growing:
    """As `SharedPrefix`, with prompts repeated for every completion."""

    valid: Tensor
    bytes_per_token: int
    in_parts = False  # caches of any kind cannot be joined

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def attending(self) -> AbstractContextManager[None]:
        return nullcontext()

    def start(
        self, prompts: Sequence[Sequence[int]], grid: Grid, room: int, at_once: int
    ) -> Tensor:
        vars(self).pop("prefix", None)  # before the new one needs room
        self.prefix, self.grid = prefill(self.model, prompts), grid
        self.valid = self.prefix.mask
        kept = [
            tensor
            for layer in self.prefix.cache.layers
            for name in ("keys", "values")
            if (tensor := getattr(layer, name, None)) is not None
        ]
        # Twice, for the cache is copied as it grows.
        self.bytes_per_token = 2 * sum(t.shape[1] * t.shape[-1] * t.element_size() for t in kept)
        groups = torch.tensor(grid.prompts, device=self.model.device)
        self.prefix.select(groups.repeat_interleave(grid.group))
        return self.prefix.hidden

    def forward(self, tokens: Tensor, positions: Tensor, clock: Clock) -> Tensor:
        prefix = self.prefix
        prefix.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(tokens), 1)], 1)
        ids, places = tokens[:, None], positions[:, None]
        hidden: Tensor = extend(self.model, prefix.cache, ids, prefix.mask, places)
        return hidden[:, 0]

    def rearrange(self, grid: Grid, step: int) -> None:
        slots = torch.tensor(grid.slots_of(self.grid), device=self.model.device)
        self.prefix.select(slots)
        self.grid = grid
