"""Tiles of the two products between which the activation is, with it (see grouped_mm_tiles.py).

Rows of x and of the upstream gradient are read where they are: row i of the experts' is that of
token gather[i] // TOP_K, or zeros where gather[i] is −1. h is rounded before it is used, so that
both passes see the same, kept or not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.moe.triton.grouped_mm_tiles import rows_of_tile
from r1kernels.triton import gemm
from r1kernels.triton.handles import launched


@triton.jit
def slots_of(gather, line, last):
    """(slots of the given rows, 0 where there is none; whether there is one)."""
    slot = tl.load(gather + line, mask=line < last, other=-1)
    return tl.maximum(slot, 0), slot >= 0


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def gate_up_tile(
    x, gate_up, offsets, gather, h, activation, tiles, rows, experts, depth, inner,
    TOP_K: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """h [rows, 2·inner] = x[token] · gate_up[expert]ᵀ, unless None; activation [rows, inner].

    Half of a tile's columns are of the gate, the others of the same columns' up.
    """
    HALF: tl.constexpr = COLUMNS // 2
    tile_row, tile_column = gemm.tile_of_program(tiles, tl.cdiv(inner, HALF), GROUP)
    expert, first, last = rows_of_tile(offsets, tile_row, experts, rows, ROWS, EXPERTS)
    if first >= last:
        return
    line = first + tl.arange(0, ROWS)
    slot, real = slots_of(gather, line, last)
    both = tl.arange(0, COLUMNS)
    of_weight = tl.minimum(tile_column * HALF + both % HALF, inner - 1) + both // HALF * inner
    gate_up = gemm.skip(gate_up, expert, 2 * inner * depth)
    steps = tl.where(expert < experts, depth, 0)
    acc = gemm.rows_times_rows(
        tl.zeros((ROWS, COLUMNS), tl.float32), x, slot // TOP_K, gate_up, of_weight,
        steps, depth, STEP, EVEN,
    )  # fmt: skip
    acc = tl.where(real[:, None], acc, 0.0)
    gate, up = gemm.halves(acc.to(activation.dtype.element_ty))
    column = tile_column * HALF + tl.arange(0, HALF)
    inside = (line < last)[:, None] & (column < inner)[None, :]
    within = tl.arange(0, ROWS)[:, None]
    if h is not None:
        at = gemm.skip(h, first, 2 * inner) + (within * 2 * inner + column[None, :])
        tl.store(at, gate, mask=inside)
        tl.store(at + inner, up, mask=inside)
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    product = (gate * tl.sigmoid(gate) * up).to(activation.dtype.element_ty)
    at = gemm.skip(activation, first, inner) + (within * inner + column[None, :])
    tl.store(at, product, mask=inside)


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def inner_gradient_tile(
    grad, down, weights, offsets, gather, h, dh, weighted, dots, tiles, rows, experts, depth, inner,
    TOP_K: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dh [rows, 2·inner] of the upstream gradient, and what else the backward pass needs of a row.

    With da = grad[token] · down[expert] and the activation a: dots [tile columns, rows] = Σ da·a
    over the columns of each tile, and weighted [rows, inner] = weight · a, unless None.
    """
    tile_row, tile_column = gemm.tile_of_program(tiles, tl.cdiv(inner, COLUMNS), GROUP)
    expert, first, last = rows_of_tile(offsets, tile_row, experts, rows, ROWS, EXPERTS)
    if (expert >= experts) | (first >= last):
        return
    line = first + tl.arange(0, ROWS)
    slot, real = slots_of(gather, line, last)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    down = gemm.skip(down, expert, depth * inner)
    da = gemm.rows_times(
        tl.zeros((ROWS, COLUMNS), tl.float32), grad, slot // TOP_K, depth, down, column,
        depth, inner, STEP, EVEN, PADDED=False,
    )  # fmt: skip
    weight = tl.load(weights + slot, mask=real, other=0.0)
    h, dh = gemm.skip(h, first, 2 * inner), gemm.skip(dh, first, 2 * inner)
    if weighted is not None:
        weighted = gemm.skip(weighted, first, inner)
    dot = inner_gradient_part(
        tl.where(real[:, None], da, 0.0), weight, h, dh, weighted, last - first,
        tile_column * COLUMNS, inner, PART,
    )  # fmt: skip
    tl.store(gemm.skip(dots, tile_column, rows) + line, dot, mask=line < last)


@triton.jit
def inner_gradient_part(da, weight, h, dh, weighted, size, start, inner, PART: tl.constexpr):
    """Stores dh and weighted, ``size`` rows, of the columns from ``start`` on; Σ da·a over them.

    There are registers for PART columns at a time.
    """
    if da.shape[1] > PART:
        left, right = gemm.halves(da)
        dot = inner_gradient_part(left, weight, h, dh, weighted, size, start, inner, PART)
        start += left.shape[1]
        return dot + inner_gradient_part(right, weight, h, dh, weighted, size, start, inner, PART)
    row = tl.arange(0, da.shape[0])[:, None]
    column = start + tl.arange(0, da.shape[1])[None, :]
    inside = (row < size) & (column < inner)
    pair = row * 2 * inner + column
    gate = tl.load(h + pair, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h + pair + inner, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    a = gate * s * up
    dot = tl.sum(da * a, 1)
    if weighted is not None:
        at = weighted + row * inner + column
        tl.store(at, (weight[:, None] * a).to(weighted.dtype.element_ty), mask=inside)
    da *= weight[:, None]
    dgate = da * up * s * (1.0 + gate * (1.0 - s))
    tl.store(dh + pair, dgate.to(dh.dtype.element_ty), mask=inside)
    tl.store(dh + pair + inner, (da * gate * s).to(dh.dtype.element_ty), mask=inside)
    return dot


@launched
@triton.jit(do_not_specialize=["slots", "rows"])
def weights_gradient(dots, inverse, dweights, slots, rows, parts, BLOCK: tl.constexpr):
    """dweights [slots] = Σ dots of the slot's row, from the first part to the last; 0 for none."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(inverse + slot, mask=slot < slots, other=-1)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(gemm.skip(dots, part, rows) + row, mask=row >= 0, other=0.0)
    tl.store(dweights + slot, total, mask=slot < slots)
