"""A linear layer's forward product as two kernels, of which the first quantizes."""

from __future__ import annotations

from torch import Tensor

from r1kernels.ops.fp8_format import BLOCK
from r1kernels.ops.fp8_linear_forward import FP8_LINEAR_FORWARD
from r1kernels.triton import plug_in
from r1kernels.triton.fp8_gemm import fp8_gemm, usable
from r1kernels.triton.fp8_quantize import fp8_quantize


@plug_in(FP8_LINEAR_FORWARD, usable)
def fp8_linear_forward(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    data, x_scale, *x_t = fp8_quantize(x, None, 1, 1, BLOCK, power_of_two, both)
    return fp8_gemm(data, x_scale, weight, scale, bias, x.dtype, False), *x_t
