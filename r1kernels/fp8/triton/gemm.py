"""fp8_gemm, also added to what is there: launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.format import BLOCK
from r1kernels.fp8.gemm import FP8_GEMM, FP8_GEMM_
from r1kernels.fp8.triton.tiles import Operand, columns_first, in_rows, parameters, product, store
from r1kernels.triton import cdiv, gemm, launch, plug_in
from r1kernels.triton.handles import launched


def usable(first: Tensor, *_: object) -> bool | str:
    return launch.absent("fp8_gemm.others", first.device) or True


@plug_in(FP8_GEMM, usable)
def fp8_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    out = a.new_empty(a.shape[0], b.shape[1 if transposed else 0], dtype=out_dtype)
    bias = None if bias is None else bias.contiguous()
    multiply_into(out, a, a_scale, b, b_scale, bias, transposed, add=False)
    return out


@plug_in(FP8_GEMM_, usable)
def fp8_gemm_(
    accumulate: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, transposed: bool
) -> None:
    sums = accumulate.contiguous()
    multiply_into(sums, a, a_scale, b, b_scale, None, transposed, add=True)
    if sums is not accumulate:
        accumulate.copy_(sums)


def multiply_into(
    out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    transposed: bool, add: bool,
) -> None:  # fmt: skip
    if not out.numel():
        return
    (rows, width), depth = out.shape, a.shape[1]
    a, b = in_rows(a), in_rows(b)
    if transposed:
        b, b_scale = b.T, b_scale.T
    x, x_each = Operand.of(a, columns_first(a, a_scale))
    y, y_each = Operand.of(b, columns_first(b, b_scale))
    tile = parameters("fp8_gemm", y, y_each)
    grid = cdiv(rows, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    gemm_tile[(grid,)](
        x, y, bias, out, rows, width, depth, X_EACH=x_each, Y_EACH=y_each,
        EVEN=depth % BLOCK == 0, ADD=add, **tile,
    )  # fmt: skip


@launched
@triton.jit(do_not_specialize=["rows"])
def gemm_tile(
    x, y, bias, out, rows, width, depth, X_EACH: tl.constexpr, Y_EACH: tl.constexpr,
    EVEN: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = x·yᵀ + bias; ADD: and what is there."""
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS), GROUP
    )
    row, column = tile_row * ROWS, tile_column * COLUMNS
    parts = product(
        x, row, rows, X_EACH, y, column, width, Y_EACH, 0, depth, EVEN, ROWS, COLUMNS, PART
    )
    store(out, width, row, rows, rows, column, parts, bias, ADD)
