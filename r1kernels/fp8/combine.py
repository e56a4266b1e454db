"""Rows of experts that come in FP8, back to their tokens: decoded, weighted and added at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8 import quantize
from r1kernels.fp8.format import BLOCK, E4M3, FP8Tensor, blocks, check_tensor, decode
from r1kernels.moe import combine, sort


def fp8_combine(
    rows: FP8Tensor,
    weights: Tensor | None,
    inverse: Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """y[t] = Σ_j w[t, j]·decode(rows)[inverse[t, j]]: ``moe_combine`` of rows received in FP8.

    Args:
        rows: data [P, H], scale [P, ⌈H/128⌉]: of ``fp8_quantize``.
        weights: [T, k] float32, or None for 1.
        inverse: [T, k] int32, of ``moe_sort`` or ``moe_route``; −1 adds nothing.
        dtype: of the result, float32, bfloat16 or float16.

    Returns:
        [T, H], summed in float32 in the order of j and rounded once. No gradients.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    shapes = check.Shapes("fp8_combine")
    check_tensor("fp8_combine", "rows", rows)
    shapes("rows.data", rows.data, "P H", (E4M3,))
    shapes.sizes["⌈H/128⌉"] = blocks(shapes.sizes["H"])
    shapes("rows.scale", rows.scale, "P ⌈H/128⌉", (torch.float32,))
    shapes("inverse", inverse, "T k", (torch.int32,))
    if weights is not None:
        shapes("weights", weights, "T k", (torch.float32,))
    if dtype not in quantize.SOURCES:
        got = check.described(dtype)
        raise TypeError(f"fp8_combine: dtype: expected a float dtype of 2 or 4 bytes, got {got}")
    return FP8_COMBINE(rows.data, rows.scale, weights, inverse, dtype)


def reference(
    data: Tensor, scale: Tensor, weights: Tensor | None, inverse: Tensor, dtype: torch.dtype
) -> Tensor:
    total = combine.reference(decode(data, scale), weights, inverse, inverse)
    return total if total.dtype == torch.float64 else total.to(dtype)


def _fake(
    data: Tensor, scale: Tensor, weights: Tensor | None, inverse: Tensor, dtype: torch.dtype
) -> Tensor:
    return data.new_empty(inverse.shape[0], data.shape[1], dtype=dtype)


def _validate(
    data: Tensor, scale: Tensor, weights: Tensor | None, inverse: Tensor, dtype: torch.dtype
) -> None:
    check.in_range("fp8_combine", "inverse", inverse.flatten(), data.shape[0], ignore=-1)


def _case(
    name: str, tokens: int, top_k: int, experts: int, width: int, align: int = 1,
    dtype: torch.dtype = torch.bfloat16, *, weighted: bool = True, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens)
        ids = torch.rand(tokens, experts + 1, generator=rng).argsort(1)[:, :top_k]
        _, _, gather, inverse = sort.reference(ids, experts, align)
        rows = torch.randn(len(gather), width, generator=rng)
        data, scale, _, _ = quantize.reference(rows, None, 1, 1, BLOCK, False, False)
        weights = torch.rand(tokens, top_k, generator=rng).to(device) if weighted else None
        return data.to(device), scale.to(device), weights, inverse.to(device), dtype

    moved = float(tokens * width * (top_k + dtype.itemsize))
    return Case(name, make, bytes=moved, bench=bench)


FP32 = torch.float32
CASES = (
    _case("bf16", 37, 4, 9, 256),
    _case("fp32, unweighted", 37, 4, 9, 256, dtype=FP32, weighted=False),
    _case("odd width, aligned", 37, 3, 9, 141, 16),
    _case("odd width, fp32, aligned", 21, 3, 9, 51, 16, FP32),
    _case("one token", 1, 6, 64, 384),
    _case("no tokens", 0, 4, 9, 128),
    _case("T 1024, k 6, H 1024", 1024, 6, 64, 1024, bench="cpu"),
    _case("T 4096, k 8, H 7168", 4096, 8, 256, 7168, bench="cuda"),
)

FP8_COMBINE = Op(
    "fp8_combine(Tensor data, Tensor scale, Tensor? weights, Tensor inverse, ScalarType dtype) "
    "-> Tensor",
    reference=reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.fp8.triton.combine",
)
