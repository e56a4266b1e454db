"""A linear layer's forward product as two kernels, of which the first quantizes."""

from __future__ import annotations

from torch import Tensor

from r1kernels.fp8.format import BLOCK
from r1kernels.fp8.linear_forward import FP8_LINEAR_FORWARD
from r1kernels.fp8.triton.gemm import fp8_gemm, usable
from r1kernels.fp8.triton.quantize import fp8_quantize
from r1kernels.triton import plug_in


@plug_in(FP8_LINEAR_FORWARD, usable)
def fp8_linear_forward(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    data, x_scale, *x_t = fp8_quantize(x, None, 1, 1, BLOCK, power_of_two, both)
    return fp8_gemm(data, x_scale, weight, scale, bias, x.dtype, False), *x_t
