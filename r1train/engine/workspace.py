"""Memory that decoding writes in place, and how much of it there is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from r1train.config.schema import RunError

SHARE = 0.25
"""Of all memory, where no bound is given; of what is free, it would depend on who else is there."""


class Workspace:
    """Tensors by name that keep their addresses, so that captured graphs may use them again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}
        self.moves = 0
        """How often one was allocated: a graph captured before that is stale."""

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape; what an earlier one of the name held is lost.

        Values are finite, if those of before were: what is masked is multiplied by zero.
        """
        count = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < count:
            self.buffers.pop(name, None)  # before the new one needs room
            buffer = self.buffers[name] = torch.zeros(count, dtype=dtype, device=self.device)
            self.moves += 1
        return buffer[:count].view(*shape)

    def clear(self) -> None:
        """Gives all of it back."""
        self.buffers.clear()

    @property
    def bytes(self) -> int:
        """How much it holds."""
        return sum(buffer.nbytes for buffer in self.buffers.values())


def memory_of(device: torch.device) -> int:
    """Bytes that `device` has, free or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def rows_that_fit(bytes_per_row: int, batch_size: int, bound: int) -> int:
    """How many completions are decoded at the same time, at most `batch_size`.

    Raises:
        RunError: not even one fits.
    """
    rows = min(batch_size, bound // bytes_per_row)
    if rows < 1:
        raise RunError(
            f"one completion needs {bytes_per_row / 2**30:.3g} GiB to be decoded, and there are "
            f"{bound / 2**30:.3g}: raise rollout.max_memory_gib, or lower "
            "rollout.max_completion_length"
        )
    return rows
