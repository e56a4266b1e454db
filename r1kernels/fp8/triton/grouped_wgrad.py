"""fp8_grouped_wgrad, also added to what is there: all experts in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.grouped_wgrad import FP8_GROUPED_WGRAD, FP8_GROUPED_WGRAD_
from r1kernels.fp8.triton.tiles import (
    BLOCK,
    Operand,
    columns_first,
    in_rows,
    parameters,
    product,
    store,
)
from r1kernels.triton import cdiv, gemm, launch, plug_in
from r1kernels.triton.handles import launched


def usable(first: Tensor, *_: object) -> bool | str:
    return launch.absent("fp8_grouped_wgrad.others", first.device) or True


@plug_in(FP8_GROUPED_WGRAD, usable)
def fp8_grouped_wgrad(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, offsets: Tensor
) -> Tensor:
    sizes = offsets.shape[0] - 1, left.shape[0], right.shape[0]
    out = left.new_empty(sizes, dtype=torch.float32)
    multiply_into(out, left, left_scale, right, right_scale, offsets, add=False)
    return out


@plug_in(FP8_GROUPED_WGRAD_, usable)
def fp8_grouped_wgrad_(
    accumulate: Tensor, left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor,
    offsets: Tensor,
) -> None:  # fmt: skip
    sums = accumulate.contiguous()
    multiply_into(sums, left, left_scale, right, right_scale, offsets, add=True)
    if sums is not accumulate:
        accumulate.copy_(sums)


def multiply_into(
    out: Tensor, left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor,
    offsets: Tensor, add: bool,
) -> None:  # fmt: skip
    if not out.numel():
        return
    experts, height, width = out.shape
    left, right = in_rows(left), in_rows(right)
    x, x_each = Operand.of(left, columns_first(left, left_scale))
    y, y_each = Operand.of(right, columns_first(right, right_scale))
    tile = parameters("fp8_grouped_wgrad", y, y_each)
    grid = cdiv(height, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    wgrad_tile[(grid, experts)](
        x, y, offsets.contiguous(), out, left.shape[1], height, width, X_EACH=x_each,
        Y_EACH=y_each, ADD=add, **tile,
    )  # fmt: skip


@launched
@triton.jit(do_not_specialize=["rows"])
def wgrad_tile(
    x, y, offsets, out, rows, height, width,
    X_EACH: tl.constexpr, Y_EACH: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[expert] [height, width] = x·yᵀ over the expert's rows; ADD: and what is there."""
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    expert = tl.program_id(1)
    start = tl.load(offsets + expert) // BLOCK * BLOCK  # tells the compiler what it is anyway
    end = tl.minimum(tl.load(offsets + expert + 1), rows)
    row, column = tile_row * ROWS, tile_column * COLUMNS
    parts = product(
        x, row, height, X_EACH, y, column, width, Y_EACH, start, end, True, ROWS, COLUMNS, PART
    )
    out = gemm.skip(out, expert, height * width)
    store(out, width, row, height, height, column, parts, None, ADD)
