"""fp8_grouped_gemm: each tile has rows of one expert, and of nobody after them.

An expert's tiles go on to where the next one's rows begin, so that the rows between them are
written, as 0. How many tiles that makes is known on the device alone (see grouped_mm_tiles).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.format import BLOCK
from r1kernels.fp8.grouped_gemm import FP8_GROUPED_GEMM
from r1kernels.fp8.triton.tiles import Operand, columns_first, in_rows, parameters, product, store
from r1kernels.moe.triton.grouped_mm_tiles import most_tiles
from r1kernels.triton import cdiv, gemm, launch, next_power_of_2, plug_in
from r1kernels.triton.handles import launched


def usable(a: Tensor, *_: object) -> bool | str:
    return launch.absent("fp8_grouped_gemm.others", a.device) or True


@plug_in(FP8_GROUPED_GEMM, usable)
def fp8_grouped_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, starts: Tensor, ends: Tensor,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    a, b = in_rows(a), in_rows(b)
    if transposed:
        b, b_scale = b.mT, b_scale.mT
    (rows, depth), (experts, width, _) = a.shape, b.shape
    out = a.new_empty(rows, width, dtype=out_dtype)
    if not experts:
        return out.zero_()
    if not out.numel():
        return out
    b_scale = columns_first(b, b_scale)
    x, x_each = Operand.of(a, columns_first(a, a_scale))
    y, y_each = Operand.of(b[0], b_scale[0])
    tile = parameters("fp8_grouped_gemm", y, y_each)
    tiles = most_tiles(rows, experts, tile["ROWS"])
    grouped_tile[(tiles * cdiv(width, tile["COLUMNS"]),)](
        x, y, b.stride(0), b_scale.stride(0), starts.contiguous(), ends.contiguous(), out,
        tiles, rows, experts, width, depth, X_EACH=x_each, Y_EACH=y_each,
        EVEN=depth % BLOCK == 0, EXPERTS=next_power_of_2(experts), **tile,
    )  # fmt: skip
    return out


@launched
@triton.jit(do_not_specialize=["tiles", "rows"])
def grouped_tile(
    x, y, y_expert, y_scale_expert, starts, ends, out, tiles, rows, experts, width, depth,
    X_EACH: tl.constexpr, Y_EACH: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = x·y[expert]ᵀ; y_expert, y_scale_expert: strides from one to the next."""
    tile_row, tile_column = gemm.tile_of_program(tiles, tl.cdiv(width, COLUMNS), GROUP)
    expert, row, end, last = rows_of_tile(starts, ends, tile_row, experts, rows, ROWS, EXPERTS)
    if row >= last:
        return
    column = tile_column * COLUMNS
    parts = product(
        x, row, end, X_EACH, of_expert(y, expert, y_expert, y_scale_expert), column, width,
        Y_EACH, 0, tl.where(row < end, depth, 0), EVEN, ROWS, COLUMNS, PART,
    )  # fmt: skip
    store(out, width, row, end, last, column, parts, None, False)


@triton.jit
def rows_of_tile(starts, ends, tile, experts, rows, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """(expert, first row, row after the expert's last, first row of the next) of a tile row.

    The last tiles are those of the rows before the first expert's, given to the last expert; for
    those after them, the first row is not before the next one's. EXPERTS: a power of two, at
    least ``experts``.
    """
    each = tl.arange(0, EXPERTS)
    exists = each < experts
    first = tl.load(starts + each, mask=exists, other=0)
    following = tl.load(starts + each + 1, mask=each + 1 < experts, other=rows)
    until = tl.cumsum(tl.where(exists, tl.cdiv(following - first, ROWS), 0), 0)
    passed = exists & (until <= tile)
    expert = tl.sum(passed.to(tl.int32), 0)
    row = (tile - tl.max(tl.where(passed, until, 0), 0)) * ROWS
    if expert < experts:
        row += tl.load(starts + expert)
        end = tl.load(ends + expert)
        last = tl.load(starts + expert + 1, mask=expert + 1 < experts, other=rows)
    else:
        end = 0
        last = tl.load(starts)
    return tl.minimum(expert, experts - 1), row, tl.minimum(end, rows), tl.minimum(last, rows)


@triton.jit
def of_expert(y, expert, stride, scale_stride):
    """Operand of one expert."""
    data, scale = gemm.skip(y.data, expert, stride), gemm.skip(y.scale, expert, scale_stride)
    return Operand(data, y.row, y.column, scale, y.scale_row, y.scale_block)
