"""Products by expert of operands that block descriptors (TMA) load, by a persistent grid.

The same products as in grouped_mm_tiles.py, where rows begin at multiples of 16 bytes. Ragged
descriptors end where an expert's rows do: what is loaded past them is 0, what is stored there is
dropped. Rows that only make other rows of the result are loaded without that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import gemm
from r1kernels.triton.handles import launched
from r1kernels.triton.ragged import load_rows, store_rows


@triton.jit
def tile_ends(offsets, experts, rows, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """[EXPERTS]: how many tile rows there are up to each expert's last one."""
    each = tl.arange(0, EXPERTS)
    exists = each < experts
    first = tl.load(offsets + each, mask=exists, other=0)
    last = tl.load(offsets + each + 1, mask=exists, other=0)
    size = tl.maximum(tl.minimum(last, rows) - first, 0)
    return tl.cumsum(tl.cdiv(size, ROWS), 0)


@triton.jit
def rows_of_tile_row(ends, offsets, tile, rows, ROWS: tl.constexpr):
    """(expert, first row, row after the expert's last) of a tile row that there is."""
    passed = ends <= tile
    expert = tl.sum(passed.to(tl.int32), 0)
    before = tl.max(tl.where(passed, ends, 0), 0)
    first = tl.load(offsets + expert) + (tile - before) * ROWS
    return expert, first, tl.minimum(tl.load(offsets + expert + 1), rows)


@triton.jit
def clear_rows(out, first, rows, width, BLOCK: tl.constexpr):
    """Zeros in the rows from ``first`` on: no expert has them."""
    column = tl.arange(0, BLOCK)
    for row in tl.range(first + tl.program_id(0), rows, tl.num_programs(0)):
        for start in range(0, width, BLOCK):
            at = gemm.skip(out, row, width) + start + column
            tl.store(at, tl.zeros([BLOCK], out.dtype.element_ty), start + column < width)


@launched
@triton.jit(do_not_specialize=["rows"])
def product_tiles(
    x_blocks, weight_blocks, out_blocks, offsets, out, rows, experts, depth, width,
    TRANSPOSED: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = x [rows, depth] · weight[expert]ᵀ, or · weight[expert] if TRANSPOSED."""
    ends = tile_ends(offsets, experts, rows, ROWS, EXPERTS)
    tiles, columns = tl.max(ends, 0), tl.cdiv(width, COLUMNS)
    steps = tl.cdiv(depth, STEP)
    tl.assume(steps > 0)
    for tile in tl.range(tl.program_id(0), tiles * columns, tl.num_programs(0), flatten=True):
        tile_row, tile_column = gemm.tile_of(tile, tiles, columns, GROUP)
        expert, first, last = rows_of_tile_row(ends, offsets, tile_row, rows, ROWS)
        start = tile_column * COLUMNS
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            a = x_blocks.load([first, step * STEP])
            if TRANSPOSED:
                b = weight_blocks.load([expert, step * STEP, start]).reshape(STEP, COLUMNS)
            else:
                b = weight_blocks.load([expert, start, step * STEP]).reshape(COLUMNS, STEP).T
            acc = gemm.multiply_add(a, b, acc)
        store_rows(out_blocks, first, last - first, start, acc)
    clear_rows(out, tl.load(offsets + experts), rows, width, COLUMNS)


@launched
@triton.jit(do_not_specialize=["rows"])
def weight_tiles(
    left_blocks, right_blocks, out_blocks, offsets, rows, experts, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[expert] [height, width] = leftᵀ · right over the expert's rows, from first to last.

    An expert without rows has a step of zeros: the compiler flattens no loop that may be empty.
    """
    tiles, columns = tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS)
    for tile in tl.range(
        tl.program_id(0), experts * tiles * columns, tl.num_programs(0), flatten=True
    ):
        expert = tile // (tiles * columns)
        tile_row, tile_column = gemm.tile_of(tile % (tiles * columns), tiles, columns, GROUP)
        row, column = tile_row * ROWS, tile_column * COLUMNS
        first = tl.load(offsets + expert)
        size = tl.maximum(tl.minimum(tl.load(offsets + expert + 1), rows) - first, 0)
        steps = tl.maximum(tl.cdiv(size, STEP), 1)
        tl.assume(steps > 0)
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            left = load_rows(left_blocks, first, size, step * STEP, row)
            right = load_rows(right_blocks, first, size, step * STEP, column)
            acc = gemm.multiply_add(left.T, right, acc)
        out_blocks.store([expert, row, column], acc.to(out_blocks.dtype).reshape(1, ROWS, COLUMNS))
