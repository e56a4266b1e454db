"""Experts' rows back to tokens, weighted and summed in order; backward each row is read once.

A program has a token, forward a block of its columns, backward all of them, since the gradients of
its weights are sums over the row.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from r1kernels.moe.combine import MOE_COMBINE, MOE_COMBINE_BACKWARD
from r1kernels.moe.triton.permute import ROWS, block_of, clear_padding, rows_of_choices
from r1kernels.triton import cdiv, plug_in
from r1kernels.triton.build import NVIDIA, Build
from r1kernels.triton.handles import launched

BLOCK = 512  # columns that a program handles together, of all of a token's rows
WARPS = {"num_warps": 2}
# What a token's gradient sums up takes registers, which on AMD two warps do not have.
GRADIENT_WARPS = {"num_warps": 4}


@launched
@triton.jit(do_not_specialize=["rows"])
def combine(
    y, x, weights, inverse, rows, width, x_stride, top_k,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    splits = tl.cdiv(width, BLOCK)
    token = (tl.program_id(0) // splits).to(tl.int64)
    column = tl.program_id(0) % splits * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, top_k, ROWS):
        for j in tl.static_range(ROWS):
            row, there = rows_of_choices(inverse, token, first + j, top_k, rows)
            value = tl.load(x + row * x_stride + column, here & there, 0.0).to(tl.float32)
            if weights is not None:
                value *= tl.load(weights + token * top_k + first + j, there, 0.0)
            total += value
    tl.store(y + token * width + column, total, here)


@launched
@triton.jit(do_not_specialize=["tokens", "rows"])
def gradient(
    dx, dweights, grad, x, weights, gather, inverse, tokens, rows, width, grad_stride, x_stride,
    top_k, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token < tokens:
        for first in range(0, top_k, ROWS):
            slot = first + tl.arange(0, ROWS)
            row, there = rows_of_choices(inverse, token, slot[:, None], top_k, rows)
            weight = tl.load(weights + token * top_k + slot[:, None], there, 0.0)
            dot = tl.zeros([ROWS, BLOCK], tl.float32)
            for start in range(0, width, BLOCK):
                column = start + tl.arange(0, BLOCK)[None, :]
                here = there & (column < width)
                g = tl.load(grad + token * grad_stride + column, column < width, 0.0)
                g = g.to(tl.float32)
                dot += g * tl.load(x + row * x_stride + column, here, 0.0).to(tl.float32)
                tl.store(dx + row * width + column, weight * g, here)
            tl.store(dweights + token * top_k + slot, tl.sum(dot, 1), slot < top_k)
    clear_padding(dx, gather, rows, width, ROWS, BLOCK)


@plug_in(MOE_COMBINE)
def moe_combine(rows: Tensor, weights: Tensor | None, gather: Tensor, inverse: Tensor) -> Tensor:
    (tokens, top_k), width = inverse.shape, rows.shape[1]
    y = rows.new_empty(tokens, width)
    if y.numel() > 0:
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        weights = None if weights is None else weights.contiguous()
        block = block_of(width, BLOCK)
        combine[(tokens * cdiv(width, block),)](
            y, rows, weights, inverse.contiguous(), rows.shape[0], width, rows.stride(0), top_k,
            ROWS, block, **WARPS,
        )  # fmt: skip
    return y


@plug_in(MOE_COMBINE_BACKWARD)
def moe_combine_backward(
    grad: Tensor, rows: Tensor, weights: Tensor, gather: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    tokens, top_k = inverse.shape
    count, width = rows.shape
    drows = rows.new_empty(rows.shape)
    dweights = weights.new_empty(weights.shape)
    if max(tokens, count) > 0:
        grad, rows = (x if x.stride(1) == 1 else x.contiguous() for x in (grad, rows))
        gradient[(max(tokens, 1),)](
            drows, dweights, grad, rows, weights.contiguous(), gather.contiguous(),
            inverse.contiguous(), tokens, count, width, grad.stride(0), rows.stride(0), top_k,
            ROWS, block_of(width, BLOCK), **GRADIENT_WARPS,
        )  # fmt: skip
    return drows, dweights


def _builds(dtype: str) -> tuple[Build, ...]:
    signature: dict[str, Any] = dict.fromkeys(("y", "x", "dx", "grad"), f"*{dtype}")
    signature |= dict.fromkeys(("gather", "inverse"), "*i32")
    signature |= dict.fromkeys(("weights", "dweights"), "*fp32")
    signature |= dict.fromkeys(
        ("tokens", "rows", "width", "x_stride", "grad_stride", "top_k"), "i32"
    )
    sizes = {"ROWS": ROWS, "BLOCK": BLOCK}
    wide = dict.fromkeys(NVIDIA, r"ld\.global\.v4[\s\S]*st\.global\.v4")
    aligned = ("y", "x", "dx", "grad", "width", "x_stride", "grad_stride")
    return (
        Build(combine, signature, sizes, WARPS, wide, aligned=aligned),
        Build(combine, signature | {"weights": None}, sizes, WARPS, wide, aligned=aligned),
        Build(gradient, signature, sizes, GRADIENT_WARPS, wide, aligned=aligned),
    )  # fmt: skip


BUILDS = (*_builds("bf16"), *_builds("fp32"))
