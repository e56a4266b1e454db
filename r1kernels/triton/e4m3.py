"""The arithmetic of r1kernels/ops/fp8_format.py on blocks of float32: the same bytes everywhere.

Codes are made and read in integers, as uint8: Triton's interpreter rounds them otherwise, sm_80 has
no instruction for them, and gfx942 one for another format.
"""

from __future__ import annotations

import triton
import triton.language as tl

# For launches: a product that a sum follows must be rounded before it.
UNFUSED = {"enable_fp_fusion": False}

LARGEST = tl.constexpr(448.0)
SMALLEST_SCALE = tl.constexpr(2.0**-126)
NOT_A_NUMBER = tl.constexpr(0x7F)

# Of float32's bits.
EXPONENT = tl.constexpr(0x7F800000)
ONE = tl.constexpr(0x00800000)  # more in the exponent
LEAST = tl.constexpr(121)  # exponent of 2^-6: code · 2^-9 below it, three bits after a one above it


@triton.jit
def encode(y):
    """Codes of float32, to nearest even. NaN and ±inf are NaN, the rest below 464 in magnitude."""
    bits = y.to(tl.int32, bitcast=True)
    exponent = tl.maximum(bits & EXPONENT, LEAST * ONE)
    # The last bit of this power of two is worth the last of y's code: their sum is rounded there.
    anchor = exponent + 20 * ONE
    total = tl.abs(y) + anchor.to(tl.float32, bitcast=True)
    code = total.to(tl.int32, bitcast=True) - anchor + ((exponent >> 20) - 8 * LEAST)
    code = tl.where(exponent < EXPONENT, code, NOT_A_NUMBER)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode(code):
    """Codes, uint8, as the float32 that they stand for."""
    code = code.to(tl.int32)
    # As they are they fit into a float's exponent and mantissa, its bias being greater by 120.
    magnitude = ((code & 0x7F) << 20).to(tl.float32, bitcast=True) * 2.0**120
    value = tl.where(code < 0x80, magnitude, -magnitude)
    return tl.where((code & 0x7F) == NOT_A_NUMBER, float("nan"), value)


@triton.jit
def scales(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    """Of the blocks of a tile; where a block has more than one row, or column, the tile is one."""
    magnitude = tl.abs(x)
    amax = tl.where(magnitude < float("inf"), magnitude, 0.0)
    if COLUMNS > 1:
        amax = tl.max(amax, 1, keep_dims=True)
    if ROWS > 1:
        amax = tl.max(amax, 0, keep_dims=True)
    scale = tl.maximum(tl.div_rn(amax, tl.full(amax.shape, LARGEST, tl.float32)), SMALLEST_SCALE)
    if POWER_OF_TWO:
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + (ONE - 1)) & EXPONENT).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def codes(x, scale):
    return encode(x * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale))
