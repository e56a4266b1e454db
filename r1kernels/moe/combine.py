"""Experts' rows back to their tokens: weighted, and summed in the order of the choices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.moe import sort


def moe_combine(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> Tensor:
    """y[t] = Σ_j weights[t, j]·rows[inverse[t, j]], in float32, j from 0 on; no atomics.

    Args:
        rows: [P, H], float32, bfloat16, float16 or float64.
        weights: [T, k] float32 (float64 for float64 rows), or None for 1.
        gather: [P] int32, of ``moe_sort`` or ``moe_route``.
        inverse: [T, k] int32, of the same; −1 adds nothing.

    Returns:
        [T, H], dtype of rows. Gradients flow to rows (0 at padding) and weights.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(rows, weights, gather, inverse)
    return MOE_COMBINE(rows, weights, gather, inverse)


@remembered
def _check(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> None:
    shapes = check.Shapes("moe_combine")
    shapes("rows", rows, "P H", check.FLOATS)
    shapes("gather", gather, "P", (torch.int32,))
    shapes("inverse", inverse, "T k", (torch.int32,))
    if weights is not None:
        shapes("weights", weights, "T k", (accumulate_dtype(rows),))


def accumulate_dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def reference(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> Tensor:
    tokens, top_k = inverse.shape
    total = rows.new_zeros(tokens, rows.shape[1], dtype=accumulate_dtype(rows))
    for j in range(top_k if len(rows) else 0):
        there = (inverse[:, j] >= 0)[:, None]
        row = rows[inverse[:, j].clamp(min=0)].to(total.dtype)
        if weights is not None:
            row = row * weights[:, j, None]
        total += row.where(there, 0)
    return total.to(rows.dtype)


def _fake(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> Tensor:
    return rows.new_empty(inverse.shape[0], rows.shape[1])


def _validate(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> None:
    check.in_range("moe_combine", "inverse", inverse.flatten(), rows.shape[0], ignore=-1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weights, gather, inverse = inputs
    ctx.save_for_backward(rows if weights is not None else None, weights, gather, inverse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rows, weights, gather, inverse = ctx.saved_tensors
    if weights is None:
        # By its name: moe_permute's gradient is this op.
        return MOE_COMBINE.gradients(rows=torch.ops.r1kernels.moe_permute(grad, gather, inverse))
    drows, dweights = MOE_COMBINE_BACKWARD(grad, rows, weights, gather, inverse)
    return MOE_COMBINE.gradients(rows=drows, weights=dweights)


def backward_reference(
    grad: Tensor, rows: Tensor, weights: Tensor, gather: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """drows[p] = weight·grad of its token; dweights[t, j] = ⟨grad[t], rows[inverse[t, j]]⟩."""
    if not len(rows) or not inverse.numel():
        return torch.zeros_like(rows), torch.zeros_like(weights)
    slot = gather.clamp(min=0)
    drows = grad[slot // inverse.shape[1]].to(weights.dtype) * weights.flatten()[slot, None]
    drows = drows.masked_fill_(gather[:, None] < 0, 0).to(rows.dtype)
    dweights = torch.zeros_like(weights)
    for j in range(inverse.shape[1]):
        row = rows[inverse[:, j].clamp(min=0)].to(weights.dtype)
        dot = (grad.to(weights.dtype) * row).sum(1)
        dweights[:, j] = dot.where(inverse[:, j] >= 0, 0)
    return drows, dweights


def _backward_fake(
    grad: Tensor, rows: Tensor, weights: Tensor, gather: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weights.new_empty(weights.shape)


def _case(
    name: str, tokens: int, top_k: int, experts: int, width: int, align: int = 1,
    dtype: torch.dtype = torch.bfloat16, *, weighted: bool = True, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens)
        ids = torch.rand(tokens, experts + 1, generator=rng).argsort(1)[:, :top_k]
        _, _, gather, inverse = sort.reference(ids, experts, align)
        rows = torch.randn(len(gather), width, generator=rng).to(device, dtype)
        weights = torch.rand(tokens, top_k, generator=rng).to(device) if weighted else None
        return rows, weights, gather.to(device), inverse.to(device)

    moved = (tokens + tokens * top_k) * width * dtype.itemsize
    flops = 2.0 * tokens * top_k * width
    return Case(name, make, flops=flops, bytes=float(moved), bench=bench)


CASES = (
    _case("bf16", 37, 4, 9, 64),
    _case("fp32", 37, 4, 9, 64, dtype=torch.float32),
    _case("not weighted", 37, 4, 9, 64, weighted=False),
    _case("odd width, aligned", 37, 3, 9, 33, 16),
    _case("odd width, fp32, aligned", 21, 3, 9, 51, 16, torch.float32),
    _case("one token", 1, 6, 64, 72),
    _case("no tokens", 0, 4, 9, 64),
    _case("no tokens, aligned", 0, 4, 9, 64, 16),
    _case("T 1024, k 6, H 1024", 1024, 6, 64, 1024, bench="cpu"),
    _case("T 4096, k 8, H 7168", 4096, 8, 256, 7168, bench="cuda"),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rows, weights, gather, inverse = case.make(device)
        rng = torch.Generator().manual_seed(1)
        grad = torch.randn(inverse.shape[0], rows.shape[1], generator=rng).to(rows)
        return grad, rows, weights, gather, inverse

    return Case(case.name, make, flops=2 * case.flops, bytes=2 * case.bytes, bench=case.bench)


MOE_COMBINE = Op(
    "moe_combine(Tensor rows, Tensor? weights, Tensor gather, Tensor inverse) -> Tensor",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.combine",
)
MOE_COMBINE_BACKWARD = Op(
    "moe_combine_backward(Tensor grad, Tensor rows, Tensor weights, Tensor gather, "
    "Tensor inverse) -> (Tensor drows, Tensor dweights)",
    reference=backward_reference,
    fake=_backward_fake,
    cases=tuple(_backward_case(case) for case in CASES if "not" not in case.name),
    triton="r1kernels.moe.triton.combine",
)
