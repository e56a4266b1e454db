"""The choice of a row's k best, exact and the same everywhere: keys as integers, in their order.

A tile of a row has its groups side by side, each padded to a power of two, so its positions are in
the order of the experts.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lowest(KEY: tl.constexpr):
    """Below the integer of every number, −inf included: what is padding, or was chosen before."""
    return tl.full([], -(2 ** (KEY.primitive_bitwidth - 1)), KEY)


@triton.jit
def flipped(bits):
    """Its own inverse: the bits of floats, as signed integers in the order of the floats."""
    return tl.where(bits < 0, bits ^ ~lowest(bits.dtype), bits)


@triton.jit
def ordered(key):
    """Integers in the order of float32 or float64 numbers; −0 equals 0, and NaN −inf."""
    key = tl.where(key == key, key, float("-inf"))
    if key.dtype == tl.float64:
        bits = key.to(tl.int64, bitcast=True)
    else:
        bits = key.to(tl.int32, bitcast=True)
    return flipped(tl.where(bits == lowest(bits.dtype), 0, bits))


@triton.jit
def to_48_bits(sums):
    """σ(z) + σ(−z) is 1, but not to the last bit: any exponential gives as many."""
    return ((sums.to(tl.int64, bitcast=True) + 16) & -32).to(tl.float64, bitcast=True)


@triton.jit
def best(key, index, AXIS: tl.constexpr):
    """The largest key along an axis, and its index: the first of equal ones.

    By 32 bits at a time, which is what a warp reduces in one instruction.
    """
    if key.dtype == tl.int64:
        high = (key >> 32).to(tl.int32)
        low = key.to(tl.int32) ^ lowest(tl.int32)  # as signed numbers in the order of unsigned ones
        largest_high = tl.max(high, AXIS, keep_dims=True)
        low = tl.where(high == largest_high, low, lowest(tl.int32))
        largest_low = tl.max(low, AXIS, keep_dims=True)
        first = (high == largest_high) & (low == largest_low)
        unsigned = (largest_low ^ lowest(tl.int32)).to(tl.uint32, bitcast=True)
        largest = largest_high.to(tl.int64) << 32 | unsigned.to(tl.int64)
    else:
        largest = tl.max(key, AXIS, keep_dims=True)
        first = key == largest
    return largest, tl.min(tl.where(first, index, key.shape[AXIS]), AXIS, keep_dims=True)


@triton.jit
def in_best_groups(key, top_k_groups, BEST: tl.constexpr, GROUPS: tl.constexpr):
    """Keys [ROWS, WIDTH], the lowest outside the groups with the largest sums of BEST best."""
    ROWS: tl.constexpr = key.shape[0]
    SIZE: tl.constexpr = key.shape[1] // GROUPS
    member = tl.reshape(key, [ROWS, GROUPS, SIZE])
    index = tl.arange(0, SIZE)[None, None, :]
    score, at = best(member, index, 2)
    if BEST == 2:
        second, _ = best(tl.where(index == at, lowest(key.dtype), member), index, 2)
        both = flipped(score).to(tl.float64, bitcast=True)
        both += flipped(second).to(tl.float64, bitcast=True)
        score = tl.where(score == lowest(key.dtype), score, ordered(to_48_bits(both)))
    group = tl.arange(0, GROUPS)[None, :, None]
    inside = score != score
    for _ in range(top_k_groups):
        _, best_group = best(score, group, 1)
        inside |= group == best_group
        score = tl.where(group == best_group, lowest(key.dtype), score)
    return tl.reshape(tl.where(inside, member, lowest(key.dtype)), key.shape)


@triton.jit
def choose(key, top_k, CHOICES: tl.constexpr):
    """[ROWS, CHOICES] int32: indices of the ``top_k`` largest keys, best first."""
    index = tl.arange(0, key.shape[1])[None, :]
    slot = tl.arange(0, CHOICES)[None, :]
    chosen = tl.zeros([key.shape[0], CHOICES], tl.int32)
    for j in range(top_k):
        _, at = best(key, index, 1)
        chosen = tl.where(slot == j, at, chosen)
        key = tl.where(index == at, lowest(key.dtype), key)
    return chosen
