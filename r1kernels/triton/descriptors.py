"""Block descriptors (TMA) of tensors: where there can be any, and what is made of them.

A descriptor's rows begin at multiples of 16 bytes. Only some targets have the kernels that take
them: those for which the launch table has parameters.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from r1kernels.triton import INTERPRETED, launch

ALIGNMENT = 16  # bytes
MOST_ROWS = 1 << 30  # of a ragged descriptor
# Another version's descriptors may have more in them.
FIELDS = ["base", "shape", "strides", "block_shape", "padding"]
KNOWN = [field.name for field in fields(TensorDescriptor)] == FIELDS


def parameters(kernel: str, *tensors: Tensor) -> dict[str, int] | None:
    """Launch parameters of ``kernel`` for descriptors of these contiguous tensors, or None."""
    device, bits = tensors[0].device, str(8 * tensors[0].itemsize)
    found = launch.table()[kernel].get(launch.target(device), {}).get(bits)
    return found if found is not None and all(map(able, tensors)) else None


def able(tensor: Tensor) -> bool:
    """Whether a contiguous tensor has rows, not too many, and all begin where they may."""
    width = tensor.shape[-1]
    aligned = (tensor.data_ptr() | width * tensor.itemsize) % ALIGNMENT == 0
    return aligned and 0 < tensor.numel() <= width * MOST_ROWS


def blocks(tensor: Tensor, *shape: int) -> TensorDescriptor:
    return _unchecked(tensor, [*tensor.shape], [*tensor.stride()], [*shape])


def ragged(matrix: Tensor | None, *shape: int) -> TensorDescriptor | None:
    """Blocks of some rows of a matrix, for ``r1kernels.triton.ragged``; None of None."""
    if matrix is None:
        return None
    stride, one = matrix.stride()
    # The two dimensions before its own take a block's first row, by addresses that wrap around.
    shape_of_all = [2**31 - 2**16, 2**31 - 2**16, MOST_ROWS, matrix.shape[1]]
    strides = [2**34 - stride, stride, stride, one]
    return _unchecked(matrix, shape_of_all, strides, [1, 1, *shape])


def _unchecked(
    tensor: Tensor, shape: list[int], strides: list[int], block: list[int]
) -> TensorDescriptor:
    """As it makes itself, but for checks: ``able`` has made them, and they take a launch's time."""
    if not KNOWN:
        return TensorDescriptor(tensor, shape, strides, block)
    made = object.__new__(TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape = tensor, shape, strides, block
    made.padding = "zero"
    return made


def programs(device: torch.device, tiles: int) -> int:
    """Of a persistent grid: one a multiprocessor, where there are as many tiles."""
    return min(tiles, multiprocessors(device))


@cache
def multiprocessors(device: torch.device) -> int:
    if INTERPRETED or device.type != "cuda":
        return 3  # as many as let each of them have several tiles
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
