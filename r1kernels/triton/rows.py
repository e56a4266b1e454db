"""Rows of numbers, however many dimensions stand before them, and tiles that have them whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from r1kernels.triton import launch, next_power_of_2


class Tile(NamedTuple):
    """The rows and columns (a power of two) that a program has at once, and its warps."""

    rows: int
    columns: int
    num_warps: int


def rows_of(x: Tensor) -> Tensor:
    """[..., W] → [R, W], a view where the rows are evenly apart."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.reshape(-1, x.shape[-1])


def tile_of(kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> Tile:
    """At least one row and ELEMENTS of them a program, DEPTH of them a thread."""
    given = launch.parameters(kernel, device, dtype)
    return sized(width, given["ELEMENTS"], given["DEPTH"])


def sized(width: int, elements: int, depth: int) -> Tile:
    columns = max(next_power_of_2(width), 16)
    rows = max(elements // columns, 1)
    return Tile(rows, columns, min(max(rows * columns // (32 * depth), 1), 32))
