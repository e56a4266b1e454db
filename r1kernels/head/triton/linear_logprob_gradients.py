"""Gradients of hidden, weight and bias from the shares (see linear_logprob_tiles.py).

dlogits = coefficient · shares for the wanted rows, in their order; the coefficient of a row without
an upstream gradient is 0. It goes to the other side of each product: into the result's rows, or
into the rows of hidden. counts are on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import gemm
from r1kernels.triton.handles import launched


@launched
@triton.jit(do_not_specialize=["start", "size", "depth"])
def hidden_tile(
    shares, weight, order, counts, coefficients, partial, dhidden,
    start, size, shares_stride, depth, width,
    FIRST: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """dhidden[order] = coefficient · (shares · weight), ``depth`` columns of V a call.

    Ranks [start, start + size) are lines 0 to size of the shares. Between the FIRST and the LAST
    call the accumulators rest in partial [size, width], fp32: the bits are those of one call for
    all columns. Tiles without an upstream gradient are left out. TMA: shares and weight are tensor
    descriptors.
    """
    total = tl.minimum(tl.load(counts) - start, size)
    tile_rows, tile_columns = tl.cdiv(tl.maximum(total, 0), ROWS), tl.cdiv(width, COLUMNS)
    if tl.program_id(0) >= tile_rows * tile_columns:
        return
    tile_row, tile_column = gemm.tile_of_program(tile_rows, tile_columns, GROUP)
    line = tile_row * ROWS + tl.arange(0, ROWS)
    factor = tl.load(coefficients + start + line, mask=line < total, other=0.0)
    active = factor != 0
    if tl.max(active.to(tl.int32), 0) == 0:
        return
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    inside = active[:, None] & (column < width)[None, :]
    within = line.to(tl.int64)[:, None] * width + column[None, :]
    if FIRST:
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        acc = tl.load(partial + within, mask=inside, other=0.0)
    if TMA:
        acc = gemm.tma_rows_times(
            acc, shares, tile_row * ROWS, weight, tile_column * COLUMNS, depth, STEP
        )
    else:
        acc = gemm.rows_times(
            acc, shares, tl.minimum(line, total - 1), shares_stride, weight, column, depth, width,
            STEP, EVEN, PADDED=True,
        )  # fmt: skip
    if LAST:
        rows = tl.load(order + start + line, mask=active, other=0)
        at = dhidden + rows.to(tl.int64)[:, None] * width + column[None, :]
        tl.store(at, (acc * factor[:, None]).to(dhidden.dtype.element_ty), mask=inside)
    else:
        tl.store(partial + within, acc, mask=inside)


@launched
@triton.jit(do_not_specialize=["columns"])
def weight_tile(
    shares, scaled, counts, blocks, dweight, shares_stride, columns, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """dweight [columns, width] = sharesᵀ · scaled, over the live blocks of STEP rows, in order.

    TMA: shares, scaled and dweight are tensor descriptors.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(columns, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    wanted, live = tl.load(counts), tl.load(counts + 2)
    first_row, first_column = tile_row * ROWS, tile_column * COLUMNS
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.load(blocks)
    for block in range(0, live):
        if TMA:
            left = shares.load([first, first_row]).T
            right = scaled.load([first, first_column])
        else:
            line = first + tl.arange(0, STEP)
            exists = line < wanted
            left = tl.load(
                shares + line.to(tl.int64)[None, :] * shares_stride + row[:, None],
                mask=exists[None, :] & (row < shares_stride)[:, None],
                other=0.0,
            )
            right = tl.load(
                scaled + line.to(tl.int64)[:, None] * width + column[None, :],
                mask=exists[:, None] & (column < width)[None, :],
                other=0.0,
            )
        acc = gemm.multiply_add(left, right, acc)
        first = tl.load(blocks + block + 1)  # a step ahead, so that no load waits for it
    if TMA:
        dweight.store([first_row, first_column], acc.to(dweight.dtype))
    else:
        at = dweight + row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < columns)[:, None] & (column < width)[None, :]
        tl.store(at, acc.to(dweight.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["columns"])
def bias_block(
    shares, counts, coefficients, dbias, shares_stride, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dbias [columns] = Σ coefficient · shares over the wanted rows, ROWS partial sums a column."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = tl.load(counts)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, wanted, ROWS):
        line = start + tl.arange(0, ROWS)
        factor = tl.load(coefficients + line, mask=line < wanted, other=0.0)
        inside = (factor != 0)[:, None] & (column < columns)[None, :]
        at = shares + line.to(tl.int64)[:, None] * shares_stride + column[None, :]
        acc += factor[:, None] * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dbias + column, tl.sum(acc, 0).to(dbias.dtype.element_ty), mask=column < columns)
