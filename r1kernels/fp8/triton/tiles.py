"""Products of FP8 tiles: each block of 128 is summed from zero, then added with its scales.

The sums of a block stay inside the matrix unit, the sums over blocks are in float32 outside of it.
What has no matrix unit for e4m3 (sm_80, sm_86, AMD's gfx942) gets the codes as bytes, and
multiplies them as float16, which holds every code exactly. So does the interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from r1kernels.fp8 import format as fp8_format
from r1kernels.triton import INTERPRETED, gemm, launch

BLOCK = tl.constexpr(fp8_format.BLOCK)


class Operand(NamedTuple):
    """A matrix of codes whose columns are summed over, and its scales; strides in elements."""

    data: Any
    row: Any  # stride
    column: Any
    scale: Any
    scale_row: Any  # stride, 0 if there is one scale for all rows
    scale_block: Any

    @staticmethod
    def of(data: Tensor, scale: Tensor) -> tuple[Operand, int]:
        """The operand of [R, C] codes, and how many rows have the same scale: 1 or 128."""
        rows, columns = (
            stride if count > 1 else 0
            for stride, count in zip(scale.stride(), scale.shape, strict=True)
        )
        each = 1 if scale.shape[0] == data.shape[0] else fp8_format.BLOCK
        strides = data.stride()
        codes = data.view(torch.uint8) if as_bytes(data.stride(1) == 1) else data
        return Operand(codes, *strides, scale, rows, columns), each


def parameters(op: str, y: Operand, each: int) -> dict[str, int]:
    """Of the launch: scales of single rows of y, or to transpose it, takes more registers."""
    kind = "squares" if each == fp8_format.BLOCK and y.column == 1 else "others"
    return launch.parameters(f"{op}.{kind}", y.data.device, torch.float8_e4m3fn)


def columns_first(data: Tensor, scale: Tensor) -> Tensor:
    """The scale, one of each row copied so that those of a block of columns are contiguous."""
    return scale.mT.contiguous().mT if scale.shape[-2] == data.shape[-2] else scale


def in_rows(data: Tensor) -> Tensor:
    """The codes [..., R, C] with unit stride along C, copied where they lie otherwise.

    How codes lie decides which unit multiplies them (see ``as_bytes``), and units differ in the
    bits that they keep of a sum.
    """
    return data if data.stride(-1) == 1 else data.contiguous()


def as_bytes(k_major: bool) -> bool:
    """Whether codes come as bytes: where nothing multiplies e4m3, and to be transposed on sm_90.

    The matrix unit of sm_90 takes e4m3 with the summed dimension contiguous only. Other codes are
    transposed on their way through shared memory, and for bytes the copies to there run ahead.
    """
    if INTERPRETED:
        return True
    target = driver.active.get_current_target()
    unit = target.backend == "cuda" and target.arch >= 89
    return not unit or (target.arch == 90 and not k_major)


@triton.jit
def product(
    x, x_first, x_last, X_EACH: tl.constexpr, y, y_first, y_last, Y_EACH: tl.constexpr,
    start, end, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """x·yᵀ over columns start to end, of ROWS rows from x_first and COLUMNS from y_first on.

    What it has for rows from x_last and y_last on means nothing. ``start`` is a multiple of 128;
    EVEN: ``end`` is one, too. The result is a tuple of tiles [ROWS, PART] side by side: the sums
    of one block need as many registers as they have elements, and while one part of them is
    promoted, the matrix unit makes the next.
    """
    k = tl.arange(0, BLOCK)
    x_row, y_row = tl.arange(0, ROWS), tl.arange(0, PART)
    left = gemm.skip(gemm.skip(x.data, x_first, x.row), start, x.column)
    right = gemm.skip(gemm.skip(y.data, y_first, y.row), start, y.column)
    of_left = tl.minimum(x_row, x_last - x_first - 1)[:, None] * x.row + k[None, :] * x.column
    of_right = y_row[None, :] * y.row + k[:, None] * y.column
    x_scales = scales(x, x_first, X_EACH, start, ROWS)
    sums = ()
    for _ in tl.static_range(COLUMNS // PART):
        sums += (tl.zeros((ROWS, PART), tl.float32),)
    for first in range(start, end, BLOCK):
        if EVEN:
            a = tl.load(left + of_left)
        else:
            a = tl.load(left + of_left, mask=(k < end - first)[None, :], other=0.0)
        x_scale = existing(x_scales, x_first, x_last)
        before, sums = sums, ()
        for i in tl.static_range(COLUMNS // PART):
            row = y_first + i * PART
            exists = (y_row < y_last - row)[None, :]
            if not EVEN:
                exists = exists & (k < end - first)[:, None]
            b = tl.load(gemm.skip(right, i * PART, y.row) + of_right, mask=exists, other=0.0)
            y_scale = existing(scales(y, row, Y_EACH, first, PART), row, y_last)
            sums += (before[i] + scaled(multiply(a, b), x_scale, y_scale),)
        left += BLOCK * x.column
        right += BLOCK * y.column
        x_scales += x.scale_block
    return sums


@triton.jit
def scales(x, first, EACH: tl.constexpr, column, COUNT: tl.constexpr):
    """Where those of [COUNT] rows from ``first`` on are, or [1] if these have one in common.

    Of the block that begins at ``column``.
    """
    row = first + tl.arange(0, 1 if EACH % COUNT == 0 else COUNT)
    block = gemm.skip(x.scale, first // EACH, x.scale_row) + column // BLOCK * x.scale_block
    return block + (row // EACH - first // EACH) * x.scale_row


@triton.jit
def existing(pointers, first, last):
    """What the rows from ``first`` to ``last`` have, 0 from there on."""
    row = first + tl.arange(0, pointers.shape[0])
    return tl.load(pointers, mask=row < last, other=0.0)


@triton.jit
def scaled(acc, x_scale, y_scale):
    if y_scale.shape[0] == 1:
        return acc * (x_scale * y_scale)[:, None]
    else:
        return acc * x_scale[:, None] * y_scale[None, :]


@triton.jit
def multiply(a, b):
    if a.dtype == tl.uint8:
        zero = tl.zeros((a.shape[0], b.shape[1]), tl.float32)
        return gemm.multiply_add(as_float16(a), as_float16(b), zero)
    else:
        return tl.dot(a, b.to(a.dtype, bitcast=True))  # b may be bytes: see as_bytes


@triton.jit
def as_float16(codes):
    """e4m3 codes given as bytes, exactly: their exponent's bias is 7, that of float16 is 15."""
    bits = codes.to(tl.int16)
    magnitude = (bits & 0x7F) << 7
    value = (magnitude | (bits & 0x80) << 8).to(tl.float16, bitcast=True) * 256
    return tl.where(magnitude == 0x7F << 7, float("nan"), value).to(tl.float16)


@triton.jit
def store(out, width, first, end, last, left, parts, bias, ADD: tl.constexpr):
    """parts + bias at rows ``first`` to ``end`` of out [·, width], from column ``left`` on.

    ADD: and what is there. Then 0, up to row ``last``.
    """
    row = tl.arange(0, parts[0].shape[0])
    inside = (row < last - first)[:, None]
    at = gemm.skip(out, first, width) + row[:, None] * width
    for i in tl.static_range(len(parts)):
        acc = tl.where((row < end - first)[:, None], parts[i], 0.0)
        column = left + i * acc.shape[1] + tl.arange(0, acc.shape[1])
        exists = (column < width)[None, :]
        if bias is not None:
            acc += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        if ADD:
            acc += tl.load(at + column[None, :], mask=inside & exists, other=0.0)
        tl.store(at + column[None, :], acc.to(out.dtype.element_ty), mask=inside & exists)
