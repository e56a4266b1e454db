"""A matrix product for each expert: the rows of each with weights of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, *, transposed: bool = False) -> Tensor:
    """Rows offsets[e] to offsets[e + 1] of x, times expert e's weight; 0 from offsets[E] on.

    Args:
        x: [P, K], float32, bfloat16, float16 or float64.
        weight: [E, N, K], as ``nn.Linear`` has it, or [E, K, N] if ``transposed``; dtype of x.
        offsets: [E + 1] int32, from 0, never falling.

    Returns:
        [P, N], dtype of x, summed in float32; under ``torch.autocast`` x and weight are cast
        first. Gradients flow to x and weight; that of an expert without rows is 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    x, weight = autocast.cast(x, weight)
    _check(x, weight, offsets, transposed)
    return GROUPED_MM(x, weight, offsets, transposed)


@remembered
def _check(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> None:
    shapes = check.Shapes("grouped_mm")
    check.flag("grouped_mm", "transposed", transposed)
    shapes("x", x, "P K", check.FLOATS)
    shapes("weight", weight, "E K N" if transposed else "E N K", (x.dtype,))
    shapes.sizes["E+1"], shapes.bound_by["E+1"] = shapes.sizes["E"] + 1, "weight"
    shapes("offsets", offsets, "E+1", (torch.int32,))


def segments(offsets: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of every expert that has some. Waits for the device."""
    ends = offsets.tolist()
    return [(e, slice(*pair)) for e, pair in enumerate(pairwise(ends)) if pair[0] < pair[1]]


def reference(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> Tensor:
    out = x.new_zeros(x.shape[0], weight.shape[2 if transposed else 1])
    for e, rows in segments(offsets):
        out[rows] = x[rows] @ (weight[e] if transposed else weight[e].T)
    return out


def _fake(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2 if transposed else 1])


def _validate(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> None:
    check.offsets("grouped_mm", "offsets", offsets, x.shape[0], "x")


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs.x, inputs.weight, inputs.offsets)
    ctx.transposed = inputs.transposed


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, offsets = ctx.saved_tensors
    dx = dweight = None
    needed = GROUPED_MM.needed(ctx)
    if needed.x:
        dx = GROUPED_MM(grad, weight, offsets, not ctx.transposed)
    if needed.weight:
        pair = (x, grad) if ctx.transposed else (grad, x)
        dweight = GROUPED_MM_BACKWARD(*pair, offsets)
    return GROUPED_MM.gradients(x=dx, weight=dweight)


def backward_reference(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    """Gradient of the weights: left[rows of e]ᵀ · right[rows of e], [E, N, K]."""
    out = left.new_zeros(offsets.shape[0] - 1, left.shape[1], right.shape[1])
    for e, rows in segments(offsets):
        out[e] = left[rows].T @ right[rows]
    return out


def _backward_fake(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    return left.new_empty(offsets.shape[0] - 1, left.shape[1], right.shape[1])


def _case(
    name: str, counts: tuple[int, ...], depth: int, columns: int,
    dtype: torch.dtype = torch.bfloat16, *, transposed: bool = False, beyond: int = 0,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    rows = sum(counts) + beyond

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + depth)
        x = torch.randn(rows, depth, generator=rng)
        shape = (len(counts), depth, columns) if transposed else (len(counts), columns, depth)
        weight = torch.randn(shape, generator=rng) / depth**0.5
        offsets = torch.tensor([0, *counts]).cumsum(0, dtype=torch.int32)
        return x.to(device, dtype), weight.to(device, dtype), offsets.to(device), transposed

    used = sum(counts)
    moved = used * (depth + columns) + sum(c > 0 for c in counts) * depth * columns
    flops = 2.0 * used * depth * columns
    return Case(name, make, flops=flops, bytes=float(moved * dtype.itemsize), bench=bench)


UNEVEN = (5, 0, 70, 1, 33, 0)
CASES = (
    _case("bf16", UNEVEN, 64, 48),
    _case("bf16, transposed", UNEVEN, 64, 48, transposed=True),
    _case("fp32", UNEVEN, 40, 56, torch.float32),
    _case("fp32, transposed", UNEVEN, 40, 56, torch.float32, transposed=True),
    _case("odd sizes", UNEVEN, 33, 51),
    _case("odd sizes, transposed", UNEVEN, 33, 51, transposed=True),
    _case("rows beyond", (3, 8, 0), 32, 32, beyond=20),
    _case("one row", (0, 0, 1, 0), 96, 40),
    _case("no rows", (0, 0), 16, 24),
    _case("nothing but rows beyond", (0, 0), 16, 24, beyond=5),
    _case("E 64, 96 rows each", (96,) * 64, 1024, 1024, bench="cpu"),
    _case("4 × 8192", (8192,) * 4, 7168, 4096, bench="cuda"),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        x, weight, offsets, transposed = case.make(device)
        rng = torch.Generator().manual_seed(1)
        shape = x.shape[0], weight.shape[2 if transposed else 1]
        return torch.randn(shape, generator=rng).to(x), x, offsets

    return Case(case.name, make, flops=case.flops, bytes=case.bytes, bench=case.bench)


GROUPED_MM = Op(
    "grouped_mm(Tensor x, Tensor weight, Tensor offsets, bool transposed) -> Tensor",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.grouped_mm",
)
GROUPED_MM_BACKWARD = Op(
    "grouped_mm_backward(Tensor left, Tensor right, Tensor offsets) -> Tensor",
    reference=backward_reference,
    fake=_backward_fake,
    validate=lambda left, right, offsets: check.offsets(
        "grouped_mm_backward", "offsets", offsets, left.shape[0], "left"
    ),
    cases=tuple(_backward_case(case) for case in CASES if "transposed" not in case.name),
    triton="r1kernels.moe.triton.grouped_mm",
)
