"""Tiles of floats written as FP8: codes and scales, of the tile as it is or of its transpose.

A tile is BLOCK columns wide, one block of a row. It holds zeros outside of the matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.fp8.format import BLOCK as _BLOCK
from r1kernels.fp8.triton import e4m3

BLOCK = tl.constexpr(_BLOCK)


@triton.jit
def lines(tile, count, SIZE: tl.constexpr):
    """(rows or columns of a tile, which of them are in the matrix)."""
    line = tile * SIZE + tl.arange(0, SIZE)
    return line, line < count


@triton.jit
def store(
    x, data, scale, tile_row, tile_column, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, POWER_OF_TWO: tl.constexpr, strides=None,
):  # fmt: skip
    """x in blocks of ROWS × COLUMNS into data [rows, columns] and its scales.

    ``strides``: of the scales, (row, column); None: they lie row after row.
    """
    HEIGHT: tl.constexpr = x.shape[0]
    factor = e4m3.scales(x, ROWS, COLUMNS, POWER_OF_TWO)
    row, in_row = lines(tile_row, rows, HEIGHT)
    column, in_column = lines(tile_column, columns, BLOCK)
    at = data + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, e4m3.codes(x, factor), in_row[:, None] & in_column[None, :])

    row, in_row = lines(tile_row, tl.cdiv(rows, ROWS), HEIGHT // ROWS)
    width = tl.cdiv(columns, COLUMNS)
    column, in_column = lines(tile_column, width, BLOCK // COLUMNS)
    if strides is None:
        at = scale + row.to(tl.int64)[:, None] * width + column[None, :]
    else:
        at = scale + row.to(tl.int64)[:, None] * strides[0] + column.to(tl.int64) * strides[1]
    tl.store(at, factor, in_row[:, None] & in_column[None, :])


@triton.jit
def store_transposed(
    x, data, scale, tile_row, tile_column, rows, columns, POWER_OF_TWO: tl.constexpr, strides=None
):  # fmt: skip
    """xᵀ, of BLOCK rows, in blocks of (1, BLOCK) into data [columns, rows up to a multiple].

    ``strides``: see ``store``.
    """
    factor = e4m3.scales(x, BLOCK, 1, POWER_OF_TWO)
    width = tl.cdiv(rows, BLOCK)
    column, inside = lines(tile_column, columns, BLOCK)
    column = column.to(tl.int64)[:, None]
    row = tile_row * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(
        data + column * (width * BLOCK) + row, tl.trans(e4m3.codes(x, factor)), inside[:, None]
    )
    if strides is None:
        at = scale + column * width + tile_row
    else:
        at = scale + column * strides[0] + tile_row.to(tl.int64) * strides[1]
    tl.store(at, tl.trans(factor), inside[:, None])
