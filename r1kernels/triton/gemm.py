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
    """This program's (tile row, tile column) among rows × columns tiles; see tile_of."""
    return tile_of(tl.program_id(0), rows, columns, GROUP)


@triton.jit
def tile_of(number, rows, columns, GROUP: tl.constexpr):
    """(tile row, tile column) of tile ``number`` among rows × columns tiles.

    GROUP tile rows go through the columns together, so that what they share stays in the L2 cache.
    """
    first = number // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = number % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def skip(pointer, count, size):
    """The pointer, past ``count`` blocks of ``size``: 64 bits wide, whatever these two are."""
    return pointer + tl.cast(count, tl.int64) * size


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
def tma_rows_times_rows(acc, x, x_first, y, y_first, depth, STEP: tl.constexpr):
    """acc + x[x_first :]·y[y_first :]ᵀ over the first ``depth`` columns, of tensor descriptors.

    Their blocks are [M, STEP] and [N, STEP]. What is outside of a tensor is 0.
    """
    for start in range(0, depth, STEP):
        acc = multiply_add(x.load([x_first, start]), y.load([y_first, start]).T, acc)
    return acc


@triton.jit
def rows_times(
    acc, x, x_rows, x_stride, y, columns, depth, width,
    STEP: tl.constexpr, EVEN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """acc [M, N] + x[x_rows]·y[:, columns]: x [·, depth] in rows of x_stride, y [depth, width].

    EVEN: depth is a multiple of STEP. PADDED: columns of x from depth on to the next multiple of
    STEP are there, and are 0.
    """
    k = tl.arange(0, STEP)
    left = x + x_rows.to(tl.int64)[:, None] * x_stride + k[None, :]
    right = y + k.to(tl.int64)[:, None] * width + columns[None, :]
    exists = (columns < width)[None, :]
    for start in range(0, depth, STEP):
        if EVEN or PADDED:
            a = tl.load(left)
        else:
            a = tl.load(left, mask=(k < depth - start)[None, :], other=0.0)
        if EVEN:
            b = tl.load(right, mask=exists, other=0.0)
        else:
            b = tl.load(right, mask=(k < depth - start)[:, None] & exists, other=0.0)
        acc = multiply_add(a, b, acc)
        left += STEP
        right += STEP * width
    return acc


@triton.jit
def tma_rows_times(acc, x, x_first, y, y_first, depth, STEP: tl.constexpr):
    """acc + x[x_first :]·y[:, y_first :] over the first ``depth`` rows of y, of tensor descriptors.

    Their blocks are [M, STEP] and [STEP, N]. What is outside of a tensor is 0.
    """
    for start in range(0, depth, STEP):
        acc = multiply_add(x.load([x_first, start]), y.load([start, y_first]), acc)
    return acc


@triton.jit
def columns_times(
    acc, x, x_lines, x_columns, x_stride, y, y_lines, columns, width, first, last,
    STEP: tl.constexpr,
):  # fmt: skip
    """acc [M, N] + x[x_lines[i], x_columns]ᵀ·y[y_lines[i], columns], i from ``first`` to ``last``.

    Line −1 holds zeros; without lines, i itself is the line. Columns of x from x_stride on and of
    y from width on do not exist.
    """
    k = tl.arange(0, STEP)
    left = x + x_columns[:, None]
    right = y + columns[None, :]
    left_exists = (x_columns < x_stride)[:, None]
    right_exists = (columns < width)[None, :]
    for start in range(first, last, STEP):
        left_line = lines_from(x_lines, start + k, last)
        right_line = lines_from(y_lines, start + k, last)
        a = tl.load(
            left + left_line.to(tl.int64)[None, :] * x_stride,
            mask=(left_line >= 0)[None, :] & left_exists,
            other=0.0,
        )
        b = tl.load(
            right + right_line.to(tl.int64)[:, None] * width,
            mask=(right_line >= 0)[:, None] & right_exists,
            other=0.0,
        )
        acc = multiply_add(a, b, acc)
    return acc


@triton.jit
def lines_from(lines, i, last):
    """The i-th of ``lines`` (None: i), −1 from ``last`` on."""
    if lines is None:
        return tl.where(i < last, i, -1)
    else:
        return tl.load(lines + i, mask=i < last, other=-1)


@triton.jit
def halves(acc):
    """Left and right half of a tile: what follows the product has room for one at a time."""
    ROWS: tl.constexpr = acc.shape[0]
    HALF: tl.constexpr = acc.shape[1] // 2
    return acc.reshape(ROWS, 2, HALF).permute(0, 2, 1).split()
