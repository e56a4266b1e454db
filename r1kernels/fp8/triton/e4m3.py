"""The arithmetic of r1kernels/fp8/format.py on blocks of float32: the same bytes everywhere.

Codes are uint8, made and read by the arithmetic of float32: Triton's interpreter casts to them
otherwise, sm_80 has no instruction for it, and gfx942 one for another format.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
SMALLEST_SCALE = tl.constexpr(2.0**-126)
SMALLEST_NORMAL = tl.constexpr(2.0**-6)
NOT_A_NUMBER = tl.constexpr(0x7F)

# Of float32's bits. Its last 20 cut off, those of a value · 2^-120 are the value's code.
EXPONENT = tl.constexpr(0x7F800000)
CUT = tl.constexpr(20)
FAR = tl.constexpr(2.0**20)
UNBIASED = tl.constexpr(2.0**-120)
BIASED = tl.constexpr(2.0**120)
OF_ZERO = tl.constexpr(-0x7F000000)


@triton.jit
def encode(y):
    """Codes of float32, to nearest even. NaN and ±inf are NaN, the rest below 464 in magnitude."""
    bits = y.to(tl.uint32, bitcast=True)
    power = (bits & EXPONENT).to(tl.float32, bitcast=True)
    # A number whose last bit is worth the last of y's code: their sum is rounded there.
    anchor = tl.maximum(power, SMALLEST_NORMAL) * FAR
    rounded = (tl.abs(y) + anchor) - anchor
    code = (rounded * UNBIASED).to(tl.uint32, bitcast=True)
    code = tl.minimum(code, NOT_A_NUMBER << CUT) << 4
    return ((code | (bits & 0x80000000)) >> 24).to(tl.uint8)


@triton.jit
def decode(code):
    """Codes, uint8, as the float32 that they stand for."""
    code = code.to(tl.uint32)
    bits = ((code & 0x7F) << CUT) | ((code & 0x80) << 24)
    value = bits.to(tl.float32, bitcast=True) * BIASED
    return tl.where((code & 0x7F) == NOT_A_NUMBER, float("nan"), value)


@triton.jit
def scales(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    """Of the blocks of a tile; where a block has more than one row, or column, the tile is one."""
    # Without its sign and moved, so that NaN and ±inf, alone, are signed integers below that of 0.
    order = x.to(tl.int32, bitcast=True) * 2 + OF_ZERO
    if COLUMNS > 1:
        order = tl.max(order, 1, keep_dims=True)
    if ROWS > 1:
        order = tl.max(order, 0, keep_dims=True)
    bits = (tl.maximum(order, OF_ZERO) - OF_ZERO).to(tl.uint32, bitcast=True) >> 1
    amax = bits.to(tl.float32, bitcast=True)
    scale = tl.maximum(tl.div_rn(amax, tl.full(amax.shape, LARGEST, tl.float32)), SMALLEST_SCALE)
    if POWER_OF_TWO:
        bits = scale.to(tl.uint32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & EXPONENT).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def codes(x, scale):
    return encode(x * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale))
