"""The gradient between the two products, row by row: what follows from that of the activation."""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton.handles import launched

COLUMNS = {"BLOCK": 256, "num_warps": 1}  # that a program handles together


@launched
@triton.jit
def inner_gradient(
    da, h, weights, gather, dh, dweights, inner, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """dh [rows, 2·inner] and dweights [slots] of da [rows, inner], the experts' own gradient.

    With the activation a: dweights = Σ da·a, and da becomes weight · a if WEIGHTED, which is what
    the gradient of the down product needs. Rows without a slot get zeros.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(gather + row)
    real = slot >= 0
    weight = tl.load(weights + slot, real, 0.0)
    dot = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inner, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < inner
        here = inside & real
        of_gate = row * 2 * inner + column
        gate = tl.load(h + of_gate, here, 0.0).to(tl.float32)
        up = tl.load(h + of_gate + inner, here, 0.0).to(tl.float32)
        d = tl.load(da + row * inner + column, here, 0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        a = gate * s * up
        dot += d * a
        if WEIGHTED:
            tl.store(da + row * inner + column, weight * a, inside)
        d *= weight
        tl.store(dh + of_gate, d * up * s * (1.0 + gate * (1.0 - s)), inside)
        tl.store(dh + of_gate + inner, d * gate * s, inside)
    tl.store(dweights + slot, tl.sum(dot, 0), real)
