"""Pieces of matrix products: which tile a program makes, and the walk along the depth.

Every product is accumulated in float32, step by step from the first to the last, by one program:
the result of a tile depends on its own rows and columns only. Offsets along rows are 64 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import INTERPRETED

# The interpreter multiplies bf16 wrongly, and its BLAS sums a row in an order that depends on where
# in the tile it is, which no matrix unit does: there, steps are summed in float64.
IN_FLOAT64 = tl.constexpr(INTERPRETED)


@triton.jit
def tile_of_program(rows, columns, GROUP: tl.constexpr):
    """This program's (tile row, tile column) among rows × columns tiles.

    GROUP tile rows go through the columns together, so that what they share stays in the L2 cache.
    """
    program = tl.program_id(0)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def multiply_add(x, y, acc):
    if IN_FLOAT64:
        x, y = x.to(tl.float32).to(tl.float64), y.to(tl.float32).to(tl.float64)
        return acc + tl.dot(x, y, out_dtype=tl.float64).to(tl.float32)
    else:
        return tl.dot(x, y, acc, input_precision="ieee")


@triton.jit
def rows_times_rows(
    acc, x, x_rows, y, y_rows, depth, width, STEP: tl.constexpr, EVEN: tl.constexpr
):
    """acc [M, N] + x[x_rows]·y[y_rows]ᵀ over the first ``depth`` of ``width`` contiguous columns.

    EVEN: depth is a multiple of STEP.
    """
    k = tl.arange(0, STEP)
    left = x + x_rows.to(tl.int64)[:, None] * width + k[None, :]
    right = y + y_rows.to(tl.int64)[None, :] * width + k[:, None]
    for start in range(0, depth, STEP):
        if EVEN:
            a = tl.load(left)
            b = tl.load(right)
        else:
            inside = k < depth - start
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        acc = multiply_add(a, b, acc)
        left += STEP
        right += STEP
    return acc


@triton.jit
def rows_times(
    acc, x, x_rows, x_stride, y, columns, depth, width, STEP: tl.constexpr, EVEN: tl.constexpr
):
    """acc [M, N] + x[x_rows]·y[:, columns]: x [·, depth] in rows of x_stride, y [depth, width].

    Columns of x from depth on to the next multiple of STEP must be there, and be 0.
    """
    k = tl.arange(0, STEP)
    left = x + x_rows.to(tl.int64)[:, None] * x_stride + k[None, :]
    right = y + k.to(tl.int64)[:, None] * width + columns[None, :]
    exists = (columns < width)[None, :]
    for start in range(0, depth, STEP):
        a = tl.load(left)
        if EVEN:
            b = tl.load(right, mask=exists, other=0.0)
        else:
            b = tl.load(right, mask=(k < depth - start)[:, None] & exists, other=0.0)
        acc = multiply_add(a, b, acc)
        left += STEP
        right += STEP * width
    return acc


@triton.jit
def columns_times(
    acc, x, x_lines, x_columns, x_stride, y, columns, depth, width, STEP: tl.constexpr
):
    """acc [M, N] + x[x_lines[:depth], x_columns]ᵀ·y[:depth, columns], y in rows of width.

    Columns of x from x_stride on do not exist.
    """
    k = tl.arange(0, STEP)
    left = x + x_columns[:, None]
    right = y + k.to(tl.int64)[:, None] * width + columns[None, :]
    left_exists = (x_columns < x_stride)[:, None]
    right_exists = (columns < width)[None, :]
    for start in range(0, depth, STEP):
        inside = k < depth - start
        line = tl.load(x_lines + start + k, mask=inside, other=0).to(tl.int64)
        a = tl.load(left + line[None, :] * x_stride, mask=inside[None, :] & left_exists, other=0.0)
        b = tl.load(right, mask=inside[:, None] & right_exists, other=0.0)
        acc = multiply_add(a, b, acc)
        right += STEP * width
    return acc
