"""Which token of a completion is at hand: a number of the host, or one that the device counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST = 64
"""Of the reach of a clock on the device, in tokens."""


@dataclass(frozen=True)
class Clock:
    """The place of a token in its completion.

    With `now` the device counts, so that what is captured in a graph at one step holds at others;
    the host then only knows how far it may reach.
    """

    step: int
    now: Tensor | None = None
    """int64 [1], equal to `step`."""

    @property
    def value(self) -> int | Tensor:
        """What is computed with."""
        return self.step if self.now is None else self.now

    def reach(self, room: int) -> int:
        """How many tokens of a completion are looked at: up to this one, or a power of two."""
        if self.now is None:
            return self.step + 1
        return min(room, max(SHORTEST, 1 << self.step.bit_length()))

    def later(self, reach: int) -> Tensor | None:
        """[reach]: which of them come after this one; None where none does."""
        if self.now is None:
            return None
        return torch.arange(reach, device=self.now.device) > self.now

    def put(self, buffer: Tensor, dim: int, value: Tensor) -> None:
        """Writes `value` to this token's place in dimension `dim` of `buffer`."""
        if self.now is None:
            buffer.select(dim, self.step).copy_(value)
            return
        with _any_order():
            buffer.index_copy_(dim, self.now, value.unsqueeze(dim).to(buffer.dtype))


@contextmanager
def _any_order() -> Iterator[None]:
    """For a write to one place, whose order cannot matter: PyTorch would sort the indices."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
