"""Tiles of products whose weights change with the row: each tile has rows of one expert.

How many rows each has is known on the device alone. So there are as many programs as could be
needed; the i-th tile finds its expert in the offsets, and those past the last tile return at once.
The last tiles are those of the rows that no expert has.

What goes with the number of rows is not specialised on: nothing is compiled again for another one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import gemm
from r1kernels.triton.handles import launched


def most_tiles(rows: int, experts: int, height: int) -> int:
    """Tile rows of ``height`` rows that suffice, however the rows are spread."""
    return min(rows, (rows + (experts + 1) * (height - 1)) // height)


@triton.jit
def rows_of_tile(offsets, tile, experts, rows, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """(expert, first row, row after the expert's last) of the given tile row, or first ≥ last.

    Expert number ``experts`` stands for none. EXPERTS: a power of two, at least ``experts``.
    """
    each = tl.arange(0, EXPERTS)
    exists = each < experts
    first = tl.load(offsets + each, mask=exists, other=0)
    last = tl.load(offsets + each + 1, mask=exists, other=0)
    ends = tl.cumsum(tl.cdiv(last - first, ROWS), 0)
    passed = exists & (ends <= tile)
    expert = tl.sum(passed.to(tl.int32), 0)
    before = tl.max(tl.where(passed, ends, 0), 0)
    start = tl.load(offsets + expert) + (tile - before) * ROWS
    end = tl.load(offsets + expert + 1, mask=expert < experts, other=rows)
    return expert, start, tl.minimum(end, rows)


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def product_tile(
    x, weight, offsets, out, tiles, rows, experts, depth, width,
    TRANSPOSED: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = x [rows, depth] · weight[expert]ᵀ, or · weight[expert] if TRANSPOSED."""
    tile_row, tile_column = gemm.tile_of_program(tiles, tl.cdiv(width, COLUMNS), GROUP)
    expert, first, last = rows_of_tile(offsets, tile_row, experts, rows, ROWS, EXPERTS)
    if first >= last:
        return
    line = first + tl.arange(0, ROWS)
    row = tl.minimum(line, last - 1)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    weight = gemm.skip(weight, expert, depth * width)
    steps = tl.where(expert < experts, depth, 0)  # without an expert the result is 0
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    if TRANSPOSED:
        acc = gemm.rows_times(
            acc, x, row, depth, weight, column, steps, width, STEP, EVEN, PADDED=False
        )
    else:
        of_weight = tl.minimum(column, width - 1)
        acc = gemm.rows_times_rows(acc, x, row, weight, of_weight, steps, depth, STEP, EVEN)
    within = tl.arange(0, ROWS)[:, None] * width + column[None, :]
    at = gemm.skip(out, first, width) + within
    inside = (line < last)[:, None] & (column < width)[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["rows"])
def weight_tile(
    left, left_lines, right, right_lines, offsets, out, rows, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[expert] [height, width] = leftᵀ · right over the expert's rows, from first to last.

    Row i is line left_lines[i] of left, i itself without them; −1 stands for zeros. Same of right.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    expert = tl.program_id(1)
    row = tile_row * ROWS + tl.arange(0, ROWS)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    acc = gemm.columns_times(
        tl.zeros((ROWS, COLUMNS), tl.float32), left, left_lines, row, height,
        right, right_lines, column, width,
        tl.load(offsets + expert), tl.minimum(tl.load(offsets + expert + 1), rows), STEP,
    )  # fmt: skip
    at = gemm.skip(out, expert, height * width) + row[:, None] * width + column[None, :]
    inside = (row < height)[:, None] & (column < width)[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
