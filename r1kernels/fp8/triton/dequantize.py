"""FP8 codes and block scales to floats."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.dequantize import FP8_DEQUANTIZE
from r1kernels.fp8.format import BLOCK, blocks
from r1kernels.fp8.triton import e4m3, e4m3_tiles
from r1kernels.triton import cdiv, plug_in
from r1kernels.triton.build import NVIDIA, Build
from r1kernels.triton.handles import launched

HEIGHT, WARPS = 32, 4


@launched
@triton.jit(do_not_specialize=["rows"])
def kernel(
    out, data, scale, rows, columns, scale_stride, row_stride, column_stride,
    HEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A scale is of ROWS × COLUMNS elements, or by a stride of 0 of all rows or columns."""
    tiles = tl.cdiv(columns, e4m3_tiles.BLOCK)
    row, in_row = e4m3_tiles.lines(tl.program_id(0) // tiles, rows, HEIGHT)
    column, in_column = e4m3_tiles.lines(tl.program_id(0) % tiles, columns, e4m3_tiles.BLOCK)
    expert = tl.program_id(1).to(tl.int64)
    of_row = (row // ROWS).to(tl.int64)[:, None] * row_stride
    of_column = (column // COLUMNS)[None, :] * column_stride
    inside = in_row[:, None] & in_column[None, :]
    factor = tl.load(scale + expert * scale_stride + of_row + of_column, inside, 0.0)
    at = (expert * rows + row[:, None]) * columns + column[None, :]
    tl.store(out + at, e4m3.decode(tl.load(data + at, inside, 0)) * factor, inside)


@plug_in(FP8_DEQUANTIZE)
def fp8_dequantize(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    *lead, rows, columns = data.shape
    out = data.new_empty(data.shape, dtype=dtype)
    if out.numel() > 0:
        (height, row_stride), (width, column_stride) = (
            (BLOCK if scale.shape[dim] == blocks(data.shape[dim]) else 1,
             scale.stride(dim) if scale.shape[dim] > 1 else 0)
            for dim in (-2, -1)
        )  # fmt: skip
        kernel[(cdiv(rows, HEIGHT) * blocks(columns), lead[0] if lead else 1)](
            out, data.contiguous().view(torch.uint8), scale, rows, columns,
            scale.stride(0) if lead else 0, row_stride, column_stride, HEIGHT, height, width,
            num_warps=WARPS,
        )  # fmt: skip
    return out


def _build(dtype: str, rows: int, columns: int) -> Build:
    signature = {"out": f"*{dtype}", "data": "*u8", "scale": "*fp32"}
    sizes = ("rows", "columns", "scale_stride", "row_stride", "column_stride")
    signature |= dict.fromkeys(sizes, "i32")
    constexprs = {"HEIGHT": HEIGHT, "ROWS": rows, "COLUMNS": columns}
    wide = dict.fromkeys(NVIDIA, r"ld\.global\.v4[\s\S]*st\.global\.v4")
    aligned = ("out", "data", "columns")
    return Build(kernel, signature, constexprs, {"num_warps": WARPS}, wide, aligned=aligned)


BUILDS = (_build("bf16", 1, BLOCK), _build("bf16", BLOCK, BLOCK), _build("fp32", BLOCK, 1))
