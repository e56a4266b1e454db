"""The matrix product of FP8 tensors, with the scales of their blocks.

    out[m, n] = Σ_b sa[m, b]·sb[n, b]·(Σ_{k in block b} a[m, k]·b[n, k])

Each block of 128 of the reduction is summed on its own, from zero, and promoted to float32 sums
with its scales: the tensor cores of sm_90 keep about 14 bits of what they accumulate (DeepSeek-V3,
arXiv 2412.19437, 3.3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.quotient import quotient
from r1kernels.fp8 import quantize
from r1kernels.fp8.format import (
    BLOCK,
    E4M3,
    LARGEST,
    FP8Tensor,
    check_scale,
    check_tensor,
    decode,
)

OUTPUTS = (torch.bfloat16, torch.float32, torch.float16)


def fp8_gemm(
    a: FP8Tensor,
    b: FP8Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: Tensor | None = None,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """a·bᵀ, or a·b if ``transposed``: the three products of a linear layer y = x·wᵀ.

    With x = fp8_quantize(x, both=True), dy likewise and w = fp8_quantize(w, block=(128, 128)):

        y  = fp8_gemm(x, w)
        dx = fp8_gemm(dy, w, transposed=True)
        dw = fp8_gemm(dy.transposed, x.transposed, out_dtype=torch.float32)

    Args:
        a: data [M, K]; scale [M | ⌈M/128⌉ | 1, ⌈K/128⌉ | 1]: by blocks, by rows or one for all.
        b: data [N, K] with such a scale, or if ``transposed`` [K, N] with its transpose.
        out_dtype: bfloat16, float32 or float16.
        accumulate: [M, N] float32, to which the product is added in place. It is returned.
        bias: [N] of out_dtype.

    Returns:
        [M, N]. No gradients: ``fp8_linear`` has them.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    shapes = check.Shapes("fp8_gemm")
    check_tensor("fp8_gemm", "a", a)
    check_tensor("fp8_gemm", "b", b)
    check.flag("fp8_gemm", "transposed", transposed)
    shapes("a.data", a.data, "M K", (E4M3,))
    shapes("b.data", b.data, "K N" if transposed else "N K", (E4M3,))
    check_scale("fp8_gemm", "a.scale", a.scale, tuple(a.data.shape))
    check_scale("fp8_gemm", "b.scale", b.scale, tuple(b.data.shape), -2 if transposed else -1)
    if out_dtype not in OUTPUTS:
        known = ", ".join(str(d).removeprefix("torch.") for d in OUTPUTS)
        raise TypeError(
            f"fp8_gemm: out_dtype: expected one of {known}; got {check.described(out_dtype)}"
        )
    if bias is not None:
        shapes("bias", bias, "N", (out_dtype,))
    if accumulate is None:
        return FP8_GEMM(a.data, a.scale, b.data, b.scale, bias, out_dtype, transposed)
    shapes("accumulate", accumulate, "M N", (torch.float32,))
    if bias is not None:
        raise ValueError("fp8_gemm: bias: expected None with accumulate, got a tensor")
    FP8_GEMM_(accumulate, a.data, a.scale, b.data, b.scale, transposed)
    return accumulate


def reference(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    right = decode(b, b_scale)
    out = decode(a, a_scale) @ (right if transposed else right.T)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out if out.dtype == torch.float64 else out.to(out_dtype)


def _fake(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    return a.new_empty(a.shape[0], b.shape[1 if transposed else 0], dtype=out_dtype)


def accumulate_reference(
    accumulate: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, transposed: bool
) -> None:
    accumulate += reference(a, a_scale, b, b_scale, None, torch.float32, transposed)


def _accumulate_fake(
    accumulate: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, transposed: bool
) -> None:
    return None


ROWS, SQUARES = (1, BLOCK), (BLOCK, BLOCK)
WHOLE = (0, 0)  # one scale for all
ROW_WISE = (1, 0)


def quantized(x: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[R, C] or [E, R, C] in blocks; 0 stands for all rows or columns."""
    if 0 not in block:
        data, scale, _, _ = quantize.reference(x, None, 1, *block, False, False)
        return data, scale
    dims = (-2, -1) if block == WHOLE else (-1,)
    scale = quotient(x.abs().amax(dims, keepdim=True), LARGEST)
    return (x / scale).to(E4M3), scale


def _case(
    name: str, m: int, n: int, k: int, out: torch.dtype = torch.bfloat16, *,
    of_a: tuple[int, int] = ROWS, of_b: tuple[int, int] = SQUARES, transposed: bool = False,
    bias: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(m + n + k)
        a = torch.randn(m, k, generator=rng)
        b = torch.randn(n, k, generator=rng) / max(k, 1) ** 0.5
        a_data, a_scale = quantized(a, of_a)
        b_data, b_scale = quantized(b.T.contiguous() if transposed else b, of_b)
        addend = torch.randn(n, generator=rng).to(device, out) if bias else None
        tensors = (t.to(device) for t in (a_data, a_scale, b_data, b_scale))
        return *tensors, addend, out, transposed

    moved = float(m * k + n * k + m * n * out.itemsize)
    return Case(name, make, flops=2.0 * m * n * k, bytes=moved, bench=bench)


FP32 = torch.float32
# The products of DeepSeek-V3's layers, N × K, that DeepGEMM publishes figures for.
SHAPES = (
    (2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)
)  # fmt: skip
CASES = (
    _case("forward", 70, 256, 384),
    _case("forward, bias", 70, 256, 384, bias=True),
    _case("forward, odd, fp32", 45, 141, 203, FP32),
    _case("forward, fp16, bias, odd", 33, 130, 259, torch.float16, bias=True),
    _case("dgrad", 70, 384, 256, transposed=True),
    _case("dgrad, odd, fp32", 45, 203, 141, FP32, transposed=True),
    _case("wgrad", 256, 128, 384, FP32, of_b=ROWS),
    _case("wgrad, odd", 131, 77, 128, FP32, of_b=ROWS),
    _case("row-wise", 70, 130, 300, of_a=ROW_WISE, of_b=ROW_WISE),
    _case("per tensor", 70, 130, 300, of_a=WHOLE, of_b=WHOLE),
    _case("per tensor, dgrad", 70, 130, 300, of_a=WHOLE, of_b=WHOLE, transposed=True),
    _case("squares, both", 200, 130, 300, of_a=SQUARES),
    _case("one row", 1, 320, 512),
    _case("five rows, odd", 5, 321, 513, FP32),
    _case("five rows, dgrad", 5, 320, 512, transposed=True),
    _case("one column", 20, 1, 256),
    _case("a short reduction", 20, 40, 7),
    _case("no reduction", 20, 40, 0),
    _case("no rows", 0, 40, 128),
    _case("no columns", 20, 0, 128),
    _case("M 512, 2048 × 2048", 512, 2048, 2048, bench="cpu"),
    _case("M 512, 2048 × 2048, dgrad", 512, 2048, 2048, transposed=True, bench="cpu"),
    _case("M 512, 2048 × 2048, wgrad", 2048, 2048, 512, FP32, of_b=ROWS, bench="cpu"),
    _case("M 1, 2048 × 2048", 1, 2048, 2048, bench="cpu"),
    _case("M 8, 2048 × 2048", 8, 2048, 2048, bench="cpu"),
    *(_case(f"M 4096, {n} × {k}", 4096, n, k, bench="cuda") for n, k in SHAPES),
    *(_case(f"M 128, {n} × {k}", 128, n, k, bench="cuda") for n, k in SHAPES),
    _case("M 4096, 7168 × 7168, dgrad", 4096, 7168, 7168, transposed=True, bench="cuda"),
    _case("M 4096, 7168 × 7168, wgrad", 7168, 7168, 4096, FP32, of_b=ROWS, bench="cuda"),
)

FP8_GEMM = Op(
    "fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias, "
    "ScalarType out_dtype, bool transposed) -> Tensor",
    reference=reference,
    fake=_fake,
    cases=CASES,
    triton="r1kernels.fp8.triton.gemm",
)
FP8_GEMM.compiled("cuda", guarded=True)
FP8_GEMM_ = Op(
    "fp8_gemm_(Tensor(a!) accumulate, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
    "bool transposed) -> ()",
    reference=accumulate_reference,
    fake=_accumulate_fake,
    triton="r1kernels.fp8.triton.gemm",
)
FP8_GEMM_.compiled("cuda", guarded=True)
