"""What two pieces of code have to agree on to be one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FEW = 0.01  # of the elements of 16 bits: where sums in another order round to the neighbour
NEAR = 1e-5  # relative, of float32


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """float32 on the CPU, whatever the defaults are: models are built under those of others."""
    return torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32)


def agrees(found: Tensor, expected: Any) -> bool:
    """The same values within float32's roundings, in 16 bits nearly all of them the same bits."""
    if not isinstance(expected, Tensor) or found.dtype != expected.dtype:
        return False
    if found.shape != expected.shape:
        return False
    if found.dtype == torch.float32:
        return torch.allclose(found, expected, rtol=NEAR, atol=1e-30)
    return bool((found != expected).float().mean() < FEW)
