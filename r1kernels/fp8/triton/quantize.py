"""Floats to FP8: a program has a tile, read from memory once, and makes all that is asked for."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8 import quantize
from r1kernels.fp8.format import BLOCK, E4M3, blocks, new_row_scale
from r1kernels.fp8.quantize import FP8_QUANTIZE, transposed_shapes
from r1kernels.fp8.triton import e4m3_tiles
from r1kernels.triton import plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.handles import UNFUSED, launched

LOW = 32  # rows of a tile where no block goes over rows
WARPS = {LOW: 4, BLOCK: 8}  # by rows of a tile


@triton.jit
def read(
    x, gather, tile_row, tile_column, rows, columns, x_rows, x_stride, top_k, HEIGHT: tl.constexpr
):  # fmt: skip
    """A tile in float32, of the rows as they are, or of those of the slots in ``gather``."""
    row, in_row = e4m3_tiles.lines(tile_row, rows, HEIGHT)
    column, in_column = e4m3_tiles.lines(tile_column, columns, e4m3_tiles.BLOCK)
    if gather is not None:
        slot = tl.load(gather + row, in_row, -1)
        row = slot // top_k
        in_row = (slot >= 0) & (slot < x_rows * top_k)
    at = x + row.to(tl.int64)[:, None] * x_stride + column[None, :]
    return tl.load(at, in_row[:, None] & in_column[None, :], 0.0).to(tl.float32)


@launched
@triton.jit(do_not_specialize=["rows", "x_rows"])
def kernel(
    x, gather, data, scale, data_t, scale_t, scale_strides, scale_t_strides, rows, columns, x_rows,
    x_stride, expert_stride, top_k,
    HEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(columns, e4m3_tiles.BLOCK)
    tile_row, tile_column = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.program_id(1).to(tl.int64)
    x += expert * expert_stride
    data += expert * rows * columns
    scale += expert * tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS)
    value = read(x, gather, tile_row, tile_column, rows, columns, x_rows, x_stride, top_k, HEIGHT)
    e4m3_tiles.store(
        value, data, scale, tile_row, tile_column, rows, columns, ROWS, COLUMNS, POWER_OF_TWO,
        scale_strides,
    )  # fmt: skip
    if data_t is not None:
        # Again, from the cache: there are not enough registers for it and both kinds of codes.
        value = read(
            x, gather, tile_row, tile_column, rows, columns, x_rows, x_stride, top_k, HEIGHT
        )
        e4m3_tiles.store_transposed(
            value, data_t, scale_t, tile_row, tile_column, rows, columns, POWER_OF_TWO,
            scale_t_strides,
        )  # fmt: skip


@plug_in(FP8_QUANTIZE)
def fp8_quantize(
    x: Tensor, gather: Tensor | None, top_k: int, rows: int, columns: int,
    power_of_two: bool, both: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    *lead, x_rows, width = x.shape
    height = x_rows if gather is None else gather.shape[0]
    data = x.new_empty(*lead, height, width, dtype=torch.uint8)
    if lead or rows > 1:
        sizes = (*lead, blocks(height, rows), blocks(width, columns))
        scale, strides = x.new_empty(sizes, dtype=torch.float32), None
    else:
        scale = new_row_scale(x, height, blocks(width, columns))
        strides = scale.stride()
    data_t, scale_t = quantize.empty_transposed(x, height, width, both)
    if data.numel() > 0:
        x = x if x.stride(-1) == 1 else x.contiguous()
        tall = BLOCK if both or rows > 1 else LOW
        grid = (blocks(height, tall) * blocks(width), lead[0] if lead else 1)
        kernel[grid](
            x, None if gather is None else gather.contiguous(), data, scale,
            data_t.view(torch.uint8) if both else None, scale_t if both else None,
            strides, scale_t.stride() if both else None, height, width, x_rows,
            x.stride(-2), x.stride(0) if lead else 0, top_k, tall, rows, columns, power_of_two,
            num_warps=WARPS[tall], **UNFUSED,
        )  # fmt: skip
    return data.view(E4M3), scale, data_t, scale_t


def empty_transposed(x: Tensor, rows: int, columns: int, both: bool) -> tuple[Tensor, Tensor]:
    data, scale = transposed_shapes(rows, columns, both)
    return x.new_empty(data, dtype=torch.uint8), x.new_empty(scale, dtype=torch.float32)


def _build(
    dtype: str, block: tuple[int, int], *, both: bool = False, gathered: bool = False
) -> Build:
    height = BLOCK if both or block[0] > 1 else LOW
    signature: dict[str, Any] = {
        "x": f"*{dtype}", "gather": "*i32" if gathered else None, "data": "*u8", "scale": "*fp32",
        "data_t": "*u8" if both else None, "scale_t": "*fp32" if both else None,
        "scale_strides": (1, "i32") if block[0] == 1 else None,
        "scale_t_strides": (1, "i32") if both else None,
    }  # fmt: skip
    sizes = ("rows", "columns", "x_rows", "x_stride", "expert_stride", "top_k")
    signature |= dict.fromkeys(sizes, "i32")
    constexprs = {
        "HEIGHT": height, "ROWS": block[0], "COLUMNS": block[1], "POWER_OF_TWO": False
    }  # fmt: skip
    aligned = ("x", "data", "data_t", "columns", "x_stride", "expert_stride")
    wide = r"div\.rn\.f32[\s\S]*st\.global\.v4"
    return Build(
        kernel, signature, constexprs, {"num_warps": WARPS[height], **UNFUSED},
        dict.fromkeys((80, 89, 90, 100), wide), aligned=aligned,
    )  # fmt: skip


BUILDS = (
    _build("bf16", (1, BLOCK)),
    _build("bf16", (1, BLOCK), both=True),
    _build("bf16", (1, BLOCK), both=True, gathered=True),
    _build("fp32", (1, BLOCK), both=True),
    _build("bf16", (BLOCK, 1)),
    _build("fp32", (BLOCK, BLOCK)),
)
