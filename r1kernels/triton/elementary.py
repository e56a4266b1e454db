"""Elementary functions on float32 blocks, each accurate to a few ulp wherever it is finite.

Triton's own stop at ``exp2`` and ``log2``; the rest would be libdevice's, which neither AMD nor the
interpreter has.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def expm1(x):
    # Taylor's series by Horner's rule; the next term is 0.5¹⁰/10! = 3e-10 of the result at most.
    series = x * 0.1 + 1.0
    for i in tl.static_range(8):
        series = x * series / (9 - i) + 1.0
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    square = x * x
    series = x + x * square * (
        -1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))
    )
    decay = tl.exp2(-2.0 * LOG2E * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
