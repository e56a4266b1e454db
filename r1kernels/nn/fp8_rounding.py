"""A weight written back to its FP8 codes by stochastic rounding, where no master remembers it.

Rounded to nearest, an update of less than half a step of the codes (1/16 of the weight) would be
lost, always. Rounded up with the probability of what is cut off, it is kept on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1kernels.core.quotient import quotient
from r1kernels.fp8.format import (
    BLOCK,
    E4M3,
    LARGEST,
    SMALLEST_SCALE,
    blocks,
    magnitudes,
    spread,
)

MANTISSA_BITS, LEAST_EXPONENT = 3, -6  # of e4m3; below 2^-6 its steps are all the same


def write_back(values: Tensor, data: Tensor, scale: Tensor, generator: torch.Generator) -> None:
    """Round ``values`` [R, C] float32 into ``data`` and ``scale``, blocks of 128 × 128, in place.

    ``scale`` is float32 or float8_e8m0fnu, which holds what moves by powers of two.

    A scale moves by powers of two only, and only when its block outgrows or half leaves its range:
    else values that were not updated would be rounded anew.
    """
    moved = fitted(scale.float(), block_maxima(values))
    scale.copy_(moved)
    scaled = (values / spread(moved, *values.shape)).clamp_(-LARGEST, LARGEST)
    codes = stochastic_e4m3(scaled, generator)
    data.copy_(codes.masked_fill_(~values.isfinite(), torch.nan).to(E4M3))


def block_maxima(values: Tensor) -> Tensor:
    """[⌈R/128⌉, ⌈C/128⌉]: the largest magnitudes of [R, C], numbers alone."""
    rows, columns = (blocks(size) * BLOCK for size in values.shape)
    wide = values.new_zeros(rows, columns)
    wide[: values.shape[0], : values.shape[1]] = magnitudes(values)
    return wide.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).amax((1, 3))


def fitted(scale: Tensor, amax: Tensor) -> Tensor:
    """scale·2^k with the least integer k for which amax/(scale·2^k) ≤ 448; as it is for amax 0."""
    mantissa, exponent = torch.frexp(quotient(amax, LARGEST) / scale)
    exponent -= (mantissa == 0.5).int()
    moved = torch.ldexp(scale, exponent).clamp(min=SMALLEST_SCALE)
    return torch.where(amax > 0, moved, scale)


def stochastic_e4m3(x: Tensor, generator: torch.Generator) -> Tensor:
    """x, at most 448 in magnitude, at one of the two nearest e4m3 values: x on average.

    A value of e4m3 stays what it is.
    """
    _, exponent = torch.frexp(x)
    exponent = (exponent - 1).clamp_(min=LEAST_EXPONENT) - MANTISSA_BITS
    steps = torch.ldexp(x, -exponent)
    below = steps.floor()
    draws = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.ldexp(below + (draws < steps - below), exponent)
