"""Gradients of hidden, weight and bias from the shares (see linear_logprob_tiles.py).

dlogits[i] = coefficient[i]·shares[i] for the active rows i, in their order. The coefficient goes
to the other side of each product: into the result's rows, or into the rows of hidden. Active row i
is line lines[i] of the shares and row active[i] of everything else; count is on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import gemm
from r1kernels.triton.handles import launched


@launched
@triton.jit(do_not_specialize=["size", "depth"])
def hidden_tile(
    shares, lines, weight, active, count, coefficient, partial, dhidden,
    shares_stride, size, depth, width,
    FIRST: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dhidden[active] = coefficient · (shares · weight), ``depth`` columns of V a call.

    Between the FIRST and the LAST call the accumulators rest in partial [active, width], fp32:
    the bits are those of one call for all columns.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(size, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    total = tl.load(count)
    if tile_row * ROWS >= total:
        return
    line = tile_row * ROWS + tl.arange(0, ROWS)
    last = tl.minimum(line, total - 1)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    inside = (line < total)[:, None] & (column < width)[None, :]
    within = line.to(tl.int64)[:, None] * width + column[None, :]
    if FIRST:
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        acc = tl.load(partial + within, mask=inside, other=0.0)
    acc = gemm.rows_times(
        acc, shares, tl.load(lines + last), shares_stride, weight, column, depth, width,
        STEP, EVEN, PADDED=True,
    )  # fmt: skip
    if LAST:
        rows = tl.load(active + last)
        acc *= tl.load(coefficient + rows)[:, None]
        at = dhidden + rows.to(tl.int64)[:, None] * width + column[None, :]
        tl.store(at, acc.to(dhidden.dtype.element_ty), mask=inside)
    else:
        tl.store(partial + within, acc, mask=inside)


@launched
@triton.jit
def scaled_row(hidden, active, count, coefficient, scaled, width, BLOCK: tl.constexpr):
    """scaled[i] = coefficient · hidden of the i-th active row."""
    line = tl.program_id(0)
    if line >= tl.load(count):
        return
    row = tl.load(active + line)
    factor = tl.load(coefficient + row)
    hidden += row.to(tl.int64) * width
    scaled += line.to(tl.int64) * width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(hidden + column, mask=column < width, other=0.0).to(tl.float32)
        tl.store(scaled + column, (factor * value).to(scaled.dtype.element_ty), mask=column < width)


@launched
@triton.jit(do_not_specialize=["columns"])
def weight_tile(
    shares, lines, scaled, count, dweight, shares_stride, columns, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dweight [columns, width] = sharesᵀ · scaled, over the active rows from first to last."""
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(columns, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    row = tile_row * ROWS + tl.arange(0, ROWS)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    acc = gemm.columns_times(
        tl.zeros((ROWS, COLUMNS), tl.float32), shares, lines, row, shares_stride,
        scaled, None, column, width, 0, tl.load(count), STEP,
    )  # fmt: skip
    at = dweight + row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < columns)[:, None] & (column < width)[None, :]
    tl.store(at, acc.to(dweight.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["columns"])
def bias_block(
    shares, lines, active, count, coefficient, dbias, shares_stride, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dbias [columns] = Σ coefficient · shares over the active rows, ROWS partial sums a column."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.load(count)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, total, ROWS):
        line = start + tl.arange(0, ROWS)
        exists = line < total
        at = tl.load(lines + line, mask=exists, other=0).to(tl.int64) * shares_stride
        row = tl.load(active + line, mask=exists, other=0)
        factor = tl.load(coefficient + row, mask=exists, other=0.0)
        inside = exists[:, None] & (column < columns)[None, :]
        share = tl.load(shares + at[:, None] + column[None, :], mask=inside, other=0.0)
        acc += factor[:, None] * share.to(tl.float32)
    tl.store(dbias + column, tl.sum(acc, 0).to(dbias.dtype.element_ty), mask=column < columns)
