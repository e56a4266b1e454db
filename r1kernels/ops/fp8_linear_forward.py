"""Quantizing and the forward product of a linear layer as one op, for the CPU.

A layer that keeps nothing for a backward pass needs no codes of its input afterwards, and at a few
rows, as in generation, every call costs a good part of the product. On a GPU the layer is the two
ops one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.op import Case, Op
from r1kernels.ops import fp8_gemm, fp8_quantize
from r1kernels.ops.fp8_format import BLOCK


def reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool
) -> Tensor:
    data, x_scale, _, _ = fp8_quantize.reference(x, None, 1, 1, BLOCK, power_of_two, False)
    x_scale = x_scale.to(scale.dtype)
    return fp8_gemm.reference(data, x_scale, weight, scale, bias, x.dtype, False)


def _fake(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, power_of_two: bool
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _case(
    name: str, m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, *,
    of_weight: tuple[int, int] = fp8_gemm.SQUARES, bias: bool = False, ue8m0: bool = False,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(m + n + k)
        x = torch.randn(m, k, generator=rng).to(device, dtype)
        weight = torch.randn(n, k, generator=rng) / max(k, 1) ** 0.5
        data, scale = (t.to(device) for t in fp8_gemm.quantized(weight, of_weight))
        addend = torch.randn(n, generator=rng).to(device, dtype) if bias else None
        return x, data, scale, addend, ue8m0

    moved = float((m * k + m * n) * dtype.itemsize + n * k)
    return Case(name, make, flops=2.0 * m * n * k, bytes=moved, bench=bench)


FP32 = torch.float32
CASES = (
    _case("rows", 70, 256, 384),
    _case("bias, ue8m0, odd", 45, 141, 203, bias=True, ue8m0=True),
    _case("fp32, bias, odd", 33, 130, 259, FP32, bias=True),
    _case("per tensor", 70, 130, 300, of_weight=fp8_gemm.WHOLE),
    _case("one row", 1, 320, 512),
    _case("no rows", 0, 40, 128),
    _case("no reduction", 20, 40, 0),
    _case("M 1, 2048 × 2048", 1, 2048, 2048, bench="cpu"),
    _case("M 8, 2048 × 2048", 8, 2048, 2048, bench="cpu"),
    _case("M 512, 2048 × 2048", 512, 2048, 2048, bench="cpu"),
)

FP8_LINEAR_FORWARD = Op(
    "fp8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, bool power_of_two) "
    "-> Tensor",
    reference=reference,
    fake=_fake,
    cases=CASES,
)
