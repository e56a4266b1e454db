"""SwiGLU quantized as it is made; its gradient, and the activation again, both ways round.

Backward, a program has a tile of one of dh and the activation. Those of the same rows run one after
another, so that what they share is read from memory once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.format import BLOCK, E4M3, blocks
from r1kernels.fp8.swiglu import FP8_SWIGLU, FP8_SWIGLU_BACKWARD
from r1kernels.fp8.triton import e4m3_tiles
from r1kernels.fp8.triton.quantize import LOW, empty_transposed
from r1kernels.triton import cdiv, gemm, plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.handles import UNFUSED, launched

WARPS = {LOW: 4, BLOCK: 16}  # by rows of a tile
ROWS = 128  # whose weights' gradients a program adds up


@triton.jit
def load(x, row, column, inside, columns):
    return tl.load(x + row * columns + column, inside, 0.0).to(tl.float32)


@triton.jit
def tile_indices(tile_row, tile_column, rows, columns, HEIGHT: tl.constexpr):
    """(rows, columns and mask of a tile), to be broadcast."""
    row, in_row = e4m3_tiles.lines(tile_row, rows, HEIGHT)
    column, in_column = e4m3_tiles.lines(tile_column, columns, e4m3_tiles.BLOCK)
    return row.to(tl.int64)[:, None], column[None, :], in_row[:, None] & in_column[None, :]


@launched
@triton.jit(do_not_specialize=["rows"])
def swiglu(h, data, scale, rows, inner, HEIGHT: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    tiles = tl.cdiv(inner, e4m3_tiles.BLOCK)
    tile_row, tile_column = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column, inside = tile_indices(tile_row, tile_column, rows, inner, HEIGHT)
    gate = load(h, row, column, inside, 2 * inner)
    up = load(h + inner, row, column, inside, 2 * inner)
    e4m3_tiles.store(
        gate * tl.sigmoid(gate) * up, data, scale, tile_row, tile_column, rows, inner,
        1, e4m3_tiles.BLOCK, POWER_OF_TWO,
    )  # fmt: skip


@launched
@triton.jit(do_not_specialize=["rows"])
def gradient(
    h, da, weights, dh, dh_scale, dh_t, dh_t_scale, a_t, a_t_scale, dots, rows, inner,
    HEIGHT: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """Tiles of dh, then of the activation: dots [⌈inner/128⌉, rows] = Σ da·a over their columns."""
    of_dh, of_a = tl.cdiv(2 * inner, e4m3_tiles.BLOCK), tl.cdiv(inner, e4m3_tiles.BLOCK)
    tile_row, tile = tl.program_id(0) // (of_dh + of_a), tl.program_id(0) % (of_dh + of_a)
    line, in_row = e4m3_tiles.lines(tile_row, rows, HEIGHT)
    weight = tl.load(weights + line, in_row, 0.0)[:, None]
    if tile < of_dh:
        row, column, inside = tile_indices(tile_row, tile, rows, 2 * inner, HEIGHT)
        of_gate = column < inner
        column = tl.where(of_gate, column, column - inner)
        gate = load(h, row, column, inside, 2 * inner)
        up = load(h + inner, row, column, inside & of_gate, 2 * inner)
        s = tl.sigmoid(gate)
        x = tl.where(of_gate, up * s * (1.0 + gate * (1.0 - s)), gate * s)
        x *= load(da, row, column, inside, inner) * weight
        e4m3_tiles.store(
            x, dh, dh_scale, tile_row, tile, rows, 2 * inner, 1, e4m3_tiles.BLOCK, POWER_OF_TWO
        )
        if dh_t is not None:
            e4m3_tiles.store_transposed(
                x, dh_t, dh_t_scale, tile_row, tile, rows, 2 * inner, POWER_OF_TWO
            )
    else:
        tile -= of_dh
        row, column, inside = tile_indices(tile_row, tile, rows, inner, HEIGHT)
        gate = load(h, row, column, inside, 2 * inner)
        a = gate * tl.sigmoid(gate) * load(h + inner, row, column, inside, 2 * inner)
        dot = tl.sum(load(da, row, column, inside, inner) * a, 1)
        tl.store(gemm.skip(dots, tile, rows) + line, dot, in_row)
        if a_t is not None:
            e4m3_tiles.store_transposed(
                a * weight, a_t, a_t_scale, tile_row, tile, rows, inner, POWER_OF_TWO
            )


@launched
@triton.jit(do_not_specialize=["rows"])
def sum_parts(dots, dweights, rows, parts, ROWS: tl.constexpr):
    """dweights [rows] = Σ dots, from the first part to the last."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(parts):
        total += tl.load(gemm.skip(dots, part, rows) + row, row < rows, 0.0)
    tl.store(dweights + row, total, row < rows)


@plug_in(FP8_SWIGLU)
def fp8_swiglu(h: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    rows, inner = h.shape[0], h.shape[1] // 2
    data, scale = empty_codes(h, rows, inner)
    if data.numel() > 0:
        swiglu[(cdiv(rows, LOW) * blocks(inner),)](
            h.contiguous(), data, scale, rows, inner, LOW, power_of_two,
            num_warps=WARPS[LOW], **UNFUSED,
        )  # fmt: skip
    return data.view(E4M3), scale


@plug_in(FP8_SWIGLU_BACKWARD)
def fp8_swiglu_backward(
    h: Tensor, da: Tensor, weights: Tensor, power_of_two: bool, both: bool
) -> tuple[Tensor, ...]:
    rows, inner = da.shape
    data, scale = empty_codes(h, rows, 2 * inner)
    data_t, scale_t = empty_transposed(h, rows, 2 * inner, both)
    a_t, a_scale_t = empty_transposed(h, rows, inner, both)
    dweights = weights.new_empty(rows)
    if rows > 0:
        height = BLOCK if both else LOW
        dots = weights.new_empty(blocks(inner), rows)
        transposed = (data_t, scale_t, a_t, a_scale_t) if both else (None,) * 4
        gradient[(cdiv(rows, height) * (blocks(2 * inner) + blocks(inner)),)](
            h.contiguous(), da.contiguous(), weights.contiguous(), data, scale, *transposed, dots,
            rows, inner, height, power_of_two, num_warps=WARPS[height], **UNFUSED,
        )  # fmt: skip
        sum_parts[(cdiv(rows, ROWS),)](dots, dweights, rows, blocks(inner), ROWS)
    codes = (data, scale, data_t, scale_t, a_t, a_scale_t)
    return *(x.view(E4M3) if x.dtype == torch.uint8 else x for x in codes), dweights


def empty_codes(like: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    scale = like.new_empty(rows, blocks(columns), dtype=torch.float32)
    return like.new_empty(rows, columns, dtype=torch.uint8), scale


def _builds(dtype: str, both: bool) -> tuple[Build, ...]:
    codes, scales = ("*u8", "*fp32") if both else (None, None)
    signature: dict[str, Any] = dict.fromkeys(("h", "da"), f"*{dtype}")
    signature |= dict.fromkeys(("weights", "scale", "dh_scale", "dots", "dweights"), "*fp32")
    signature |= {"data": "*u8", "dh": "*u8"}
    signature |= {"dh_t": codes, "a_t": codes, "dh_t_scale": scales, "a_t_scale": scales}
    signature |= dict.fromkeys(("rows", "inner", "parts"), "i32")
    height = BLOCK if both else LOW
    tile = {"HEIGHT": height, "POWER_OF_TWO": False}
    options = {"num_warps": WARPS[height], **UNFUSED}
    wide = dict.fromkeys((80, 89, 90, 100), r"div\.rn\.f32[\s\S]*st\.global\.v4")
    aligned = ("h", "da", "data", "dh", "dh_t", "a_t", "inner")
    return (
        Build(swiglu, signature, tile, options, wide, aligned=aligned),
        Build(gradient, signature, tile, options, wide, aligned=aligned),
        Build(sum_parts, signature, {"ROWS": ROWS}),
    )


BUILDS = (*_builds("bf16", True), *_builds("fp32", True), *_builds("bf16", False))
