"""The product with the activation behind it, by block descriptors and a persistent grid.

What moe_experts_tiles.py makes of tokens, this makes of rows that were brought to their experts
before: a descriptor loads rows that lie together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.moe.triton.experts_tiles import slots_of
from r1kernels.moe.triton.grouped_mm_descriptors import clear_rows, rows_of_tile_row, tile_ends
from r1kernels.triton import gemm
from r1kernels.triton.handles import launched
from r1kernels.triton.ragged import store_rows


@launched
@triton.jit(do_not_specialize=["rows"])
def gate_up_tiles(
    x_blocks, gate_up_blocks, gate_blocks, up_blocks, activation_blocks, h, offsets, gather, rows,
    experts, depth, inner, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """h [rows, 2·inner] = x [rows, depth] · gate_up[expert]ᵀ, unless None; its activation.

    gate_up is [2·experts, inner, depth]. Half of a tile's columns are of the gate, the others of
    the same columns' up; gate_blocks and up_blocks are those of h.
    """
    HALF: tl.constexpr = COLUMNS // 2
    ends = tile_ends(offsets, experts, rows, ROWS, EXPERTS)
    tiles, columns = tl.max(ends, 0), tl.cdiv(inner, HALF)
    steps = tl.cdiv(depth, STEP)
    tl.assume(steps > 0)
    for tile in tl.range(tl.program_id(0), tiles * columns, tl.num_programs(0), flatten=True):
        tile_row, tile_column = gemm.tile_of(tile, tiles, columns, GROUP)
        expert, first, last = rows_of_tile_row(ends, offsets, tile_row, rows, ROWS)
        size, start = last - first, tile_column * HALF
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            a = x_blocks.load([first, step * STEP])
            b = gate_up_blocks.load([2 * expert, start, step * STEP]).reshape(COLUMNS, STEP)
            acc = gemm.multiply_add(a, b.T, acc)
        _, real = slots_of(gather, first + tl.arange(0, ROWS), last)
        acc = tl.where(real[:, None], acc, 0.0)
        gate, up = gemm.halves(acc.to(activation_blocks.dtype))
        if h is not None:
            store_rows(gate_blocks, first, size, start, gate)
            store_rows(up_blocks, first, size, start, up)
        gate, up = gate.to(tl.float32), up.to(tl.float32)
        store_rows(activation_blocks, first, size, start, gate * tl.sigmoid(gate) * up)
    if h is not None:
        clear_rows(h, tl.load(offsets + experts), rows, 2 * inner, COLUMNS)
