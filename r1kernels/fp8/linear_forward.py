"""Quantizing and the forward product of a linear layer as one op.

At a few rows, as in generation, every call costs a good part of the product, and a layer that keeps
nothing for a backward pass needs no codes of its input afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core.op import Case, Op
from r1kernels.fp8 import gemm, quantize
from r1kernels.fp8.format import BLOCK


def reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and xᵀ as ``fp8_quantize`` with ``both`` gives it, else empty."""
    data, x_scale, data_t, scale_t = quantize.reference(x, None, 1, 1, BLOCK, power_of_two, both)
    x_scale = x_scale.to(scale.dtype)
    y = gemm.reference(data, x_scale, weight, scale, bias, x.dtype, False)
    return y, data_t, scale_t


def _fake(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    data_t, scale_t = quantize.empty_transposed(x, rows, columns, both)
    return x.new_empty(rows, weight.shape[0]), data_t, scale_t


def _case(
    name: str, m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, *,
    of_weight: tuple[int, int] = gemm.SQUARES, bias: bool = False, ue8m0: bool = False,
    both: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(m + n + k)
        x = torch.randn(m, k, generator=rng).to(device, dtype)
        weight = torch.randn(n, k, generator=rng) / max(k, 1) ** 0.5
        data, scale = (t.to(device) for t in gemm.quantized(weight, of_weight))
        addend = torch.randn(n, generator=rng).to(device, dtype) if bias else None
        return x, data, scale, addend, ue8m0, both

    moved = float((m * k + m * n) * dtype.itemsize + n * k)
    return Case(name, make, flops=2.0 * m * n * k, bytes=moved, bench=bench)


FP32 = torch.float32
CASES = (
    _case("rows", 70, 256, 384),
    _case("bias, ue8m0, odd", 45, 141, 203, bias=True, ue8m0=True),
    _case("fp32, bias, odd", 33, 130, 259, FP32, bias=True),
    _case("per tensor", 70, 130, 300, of_weight=gemm.WHOLE),
    _case("both", 70, 256, 384, both=True),
    _case("both, bias, odd", 141, 130, 203, bias=True, both=True),
    _case("few rows, both", 9, 200, 272, bias=True, both=True),
    _case("one row", 1, 320, 512),
    _case("sixteen rows, an odd width", 16, 141, 1024, bias=True),
    _case("sixty-four rows, fp32", 64, 130, 400, FP32, bias=True),
    _case("a hundred rows", 100, 130, 272, bias=True),
    _case("sixty-four rows, fp16, ue8m0", 64, 192, 128, torch.float16, ue8m0=True),
    _case("no rows", 0, 40, 128),
    _case("no reduction", 20, 40, 0),
    _case("M 1, 2048 × 2048", 1, 2048, 2048, bench="cpu"),
    _case("M 8, 2048 × 2048", 8, 2048, 2048, bench="cpu"),
    _case("M 512, 2048 × 2048", 512, 2048, 2048, bench="cpu"),
    *(_case(f"M {m}, 7168 × 7168", m, 7168, 7168, bench="cuda") for m in (1, 64, 4096)),
    _case("M 64, 4096 × 7168", 64, 4096, 7168, bench="cuda"),
    _case("M 4096, 7168 × 7168, both", 4096, 7168, 7168, both=True, bench="cuda"),
)

FP8_LINEAR_FORWARD = Op(
    "fp8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, bool power_of_two, "
    "bool both) -> (Tensor y, Tensor data_t, Tensor scale_t)",
    reference=reference,
    fake=_fake,
    cases=CASES,
    triton="r1kernels.fp8.triton.linear_forward",
)
FP8_LINEAR_FORWARD.compiled("cuda", guarded=True)
