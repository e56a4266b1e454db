"""Rows over their root mean square, with a residual added first; backward in two launches.

A program has whole rows in registers, so that each is read once; narrow rows share a program. How
the columns of a row are summed depends on its width alone. The weight's gradient is summed over a
fixed number of parts of the rows, however many processors the device has, and then over the parts
in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.elementwise.rms_norm import RMS_NORM, RMS_NORM_BACKWARD
from r1kernels.triton import cdiv, launch, plug_in
from r1kernels.triton.handles import launched
from r1kernels.triton.rows import rows_of, tile_of

WIDEST = 16384  # columns that fit in the registers of a program
WIDEST_SUMMED = 8192  # the same, beside sums for the gradient of the weight
SUMMED = {"PARTS": 256, "COLUMNS": 16}  # that a program adds up at once


@triton.jit
def tile_indices(first, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column of each element of a tile, and whether it is in the matrix."""
    row = first + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    return row.to(tl.int64), column, (row < rows) & (column < WIDTH)


@launched
@triton.jit(do_not_specialize=["rows"])
def forward(
    y, h, rstd, x, residual, weight, rows, x_stride, residual_stride, eps, offset,
    WIDTH: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = tile_indices(tl.program_id(0) * ROWS, rows, WIDTH, ROWS, COLUMNS)
    value = tl.load(x + row * x_stride + column, inside, 0.0)
    w = tl.load(weight + column, column < WIDTH, 0.0).to(tl.float32) + offset
    at = row * WIDTH + column
    if residual is not None:
        added = tl.load(residual + row * residual_stride + column, inside, 0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(value.dtype)
        tl.store(h + at, value, inside)
    value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / WIDTH + eps)
    value *= scale
    if ROUND:
        value = value.to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + at, value * w, inside)
    tl.store(rstd + row, scale, row < rows)


@launched
@triton.jit(do_not_specialize=["rows"])
def gradient(
    dx, parts, dy, dh, h, weight, rstd, rows, dy_stride, dh_stride, h_stride, offset,
    WIDTH: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """dx of every so many tiles of rows, and what these add to dweight."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, rows, step, num_stages=STAGES):
        row, column, inside = tile_indices(first, rows, WIDTH, ROWS, COLUMNS)
        g = tl.load(dy + row * dy_stride + column, inside, 0.0).to(tl.float32)
        normal = tl.load(h + row * h_stride + column, inside, 0.0).to(tl.float32)
        scale = tl.load(rstd + row, row < rows, 0.0)
        if dh is not None:  # here, so that all that is read is under way at once
            through = tl.load(dh + row * dh_stride + column, inside, 0.0)
        normal *= scale
        if parts is not None:
            if ROUND:
                total += g * normal.to(dx.dtype.element_ty).to(tl.float32)
            else:
                total += g * normal
        # The weight comes from the cache in every turn: there are no registers to keep it.
        g *= tl.load(weight + column, column < WIDTH, 0.0).to(tl.float32) + offset
        if ROUND:
            g = g.to(dx.dtype.element_ty).to(tl.float32)
        mean = tl.sum(g * normal, 1, keep_dims=True) / WIDTH
        result = (scale * (g - normal * mean)).to(dx.dtype.element_ty)
        if dh is not None:
            result = (result.to(tl.float32) + through.to(tl.float32)).to(dx.dtype.element_ty)
        tl.store(dx + row * WIDTH + column, result, inside)
    if parts is not None:
        at = tl.arange(0, COLUMNS)
        tl.store(parts + tl.program_id(0) * WIDTH + at, tl.sum(total, 0), at < WIDTH)


@launched
@triton.jit
def add_parts(
    dweight, parts, count, WIDTH: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dweight = Σ parts, in an order that their number alone decides."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([PARTS, COLUMNS], tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        total += tl.load(parts + part * WIDTH + column, (part < count) & (column < WIDTH), 0.0)
    tl.store(dweight + column, tl.sum(total, 0, keep_dims=True), column < WIDTH)


def gradient_of(width: int) -> str:
    """The launch parameters of backward: wide rows leave no room for another one under way."""
    kind = "narrow_" if width <= 256 else "wide_" if width > 4096 else ""
    return f"rms_norm.{kind}gradient"


def able(x: Tensor, widest: int = WIDEST) -> bool | str:
    if x.shape[-1] > widest:
        return f"takes rows of at most {widest} columns, got {x.shape[-1]}"
    return launch.absent("rms_norm.forward", x.device) or True


@plug_in(RMS_NORM, when=lambda x, *_: able(x))
def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, offset: float,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y = x.new_empty(x.shape)
    h = x.new_empty(0 if residual is None else x.shape)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if y.numel() > 0:
        width = x.shape[-1]
        tile = tile_of("rms_norm.forward", x.device, x.dtype, width)
        x, added = rows_of(x), None if residual is None else rows_of(residual)
        forward[(cdiv(len(x), tile.rows),)](
            y, h, rstd, x, added, weight.contiguous(), len(x), x.stride(0),
            None if added is None else added.stride(0), eps, offset,
            width, round_before_weight, tile.rows, tile.columns, num_warps=tile.num_warps,
        )  # fmt: skip
    return y, h, rstd


def able_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor, offset: float,
    round_before_weight: bool, need_weight: bool,
) -> bool | str:  # fmt: skip
    return able(h, WIDEST_SUMMED if need_weight else WIDEST)


@plug_in(RMS_NORM_BACKWARD, when=able_backward)
def rms_norm_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor, offset: float,
    round_before_weight: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dx = h.new_empty(h.shape)
    dweight = weight.new_empty(weight.shape if need_weight else 0)
    if dx.numel() == 0:
        return dx, dweight.zero_()
    width = h.shape[-1]
    kernel = gradient_of(width)
    tile = tile_of(kernel, h.device, h.dtype, width)
    given = launch.parameters(kernel, h.device, h.dtype)
    dy, h = rows_of(dy), rows_of(h)
    through = None if dh is None else rows_of(dh)
    programs = cdiv(len(h), tile.rows)
    if need_weight:
        programs = min(programs, given["PROGRAMS"])
    parts = rstd.new_empty(programs, width) if need_weight else None
    gradient[(programs,)](
        dx, parts, dy, through, h, weight.contiguous(), rstd.contiguous(), len(h), dy.stride(0),
        None if through is None else through.stride(0), h.stride(0), offset,
        width, round_before_weight, tile.rows, tile.columns, given["STAGES"],
        num_warps=tile.num_warps,
    )  # fmt: skip
    if parts is not None:
        add_parts[(cdiv(width, SUMMED["COLUMNS"]),)](
            dweight, parts, programs, width, **SUMMED, num_warps=8
        )
    return dx, dweight
