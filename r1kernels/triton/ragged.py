"""Blocks of some rows of a matrix, read and written by descriptors that end where these rows do.

Such a descriptor has four dimensions of a matrix's two, and reaches a row by a way round on which
the last row lies at the descriptor's bound: addresses are 64 bits wide and wrap around
(``triton.tools.ragged_tma``, which says it of any number of dimensions).
"""

from __future__ import annotations

import triton
import triton.language as tl

BOUND = tl.constexpr(1 << 30)


@triton.jit
def load_rows(blocks, first, size, row, column):
    """The block at (first + row, column) of rows first … first + size; 0 outside of them."""
    block = blocks.load([BOUND, first + size, BOUND - size + row, column])
    return block.reshape(block.shape[2], block.shape[3])


@triton.jit
def store_rows(blocks, first, size, column, block):
    """Stores the block at (first, column), as far as it lies within ``size`` rows."""
    block = block.to(blocks.dtype).reshape(1, 1, block.shape[0], block.shape[1])
    blocks.store([BOUND, first + size, BOUND - size, column], block)
