"""Products by expert of few rows, as in generation: what takes time is to read the weights, once.

Tiles are narrow, so that all of the device reads, and a descriptor brings several steps' weights
ahead. Rows are read where they are, and only those that there are. Every element is summed in the
same steps as where there are many rows, so it is the same number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.moe.triton.experts_tiles import slots_of
from r1kernels.moe.triton.grouped_mm_tiles import rows_of_tile
from r1kernels.triton import gemm
from r1kernels.triton.handles import launched


@triton.jit
def rows_of_x(x, line, there, depth, start, STEP: tl.constexpr):
    """A step's columns of the lines of x that are there, 0 elsewhere."""
    k = start + tl.arange(0, STEP)
    at = x + line.to(tl.int64)[:, None] * depth + k[None, :]
    return tl.load(at, mask=there[:, None] & (k < depth)[None, :], other=0.0)


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def product_few(
    x, weight_blocks, offsets, out, tiles, rows, experts, depth, width,
    TRANSPOSED: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = x [rows, depth] · weight[expert]ᵀ, or · weight[expert] if TRANSPOSED."""
    expert, first, last = rows_of_tile(
        offsets, tl.program_id(0) % tiles, experts, rows, ROWS, EXPERTS
    )
    if first >= last:
        return
    start = tl.program_id(0) // tiles * COLUMNS
    line = first + tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, tl.where(expert < experts, depth, 0), STEP):
        a = rows_of_x(x, line, line < last, depth, k, STEP)
        if TRANSPOSED:
            b = weight_blocks.load([expert, k, start]).reshape(STEP, COLUMNS)
        else:
            b = weight_blocks.load([expert, start, k]).reshape(COLUMNS, STEP).T
        acc = gemm.multiply_add(a, b, acc)
    column = start + tl.arange(0, COLUMNS)
    at = out + line.to(tl.int64)[:, None] * width + column[None, :]
    inside = (line < last)[:, None] & (column < width)[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def gate_up_few(
    x, gate_up_blocks, offsets, gather, h, activation, tiles, rows, experts, depth, inner,
    TOP_K: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """h [rows, 2·inner] = x[token] · gate_up[expert]ᵀ, unless None; activation [rows, inner].

    gate_up is [2·experts, inner, depth]. Half of a tile's columns are of the gate, the others of
    the same columns' up.
    """
    HALF: tl.constexpr = COLUMNS // 2
    expert, first, last = rows_of_tile(
        offsets, tl.program_id(0) % tiles, experts, rows, ROWS, EXPERTS
    )
    if first >= last:
        return
    start = tl.program_id(0) // tiles * HALF
    line = first + tl.arange(0, ROWS)
    slot, real = slots_of(gather, line, last)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, tl.where(expert < experts, depth, 0), STEP):
        a = rows_of_x(x, slot // TOP_K, real, depth, k, STEP)
        b = gate_up_blocks.load([2 * expert, start, k]).reshape(COLUMNS, STEP)
        acc = gemm.multiply_add(a, b.T, acc)
    acc = tl.where(real[:, None], acc, 0.0)
    gate, up = gemm.halves(acc.to(activation.dtype.element_ty))
    column = start + tl.arange(0, HALF)
    inside = (line < last)[:, None] & (column < inner)[None, :]
    row = line.to(tl.int64)[:, None]
    if h is not None:
        at = h + row * 2 * inner + column[None, :]
        tl.store(at, gate, mask=inside)
        tl.store(at + inner, up, mask=inside)
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    product = (gate * tl.sigmoid(gate) * up).to(activation.dtype.element_ty)
    tl.store(activation + row * inner + column[None, :], product, mask=inside)
