"""Advantages of completions relative to their group, in one launch and without sorting.

Every program passes over the whole batch for each of its rows: twice for a mean, three times for a
standard deviation. Sums are of integers, in fixed point relative to the largest number, so they are
the same in whatever order the batch comes: to 2⁻⁶¹·n of the largest, which is finer than float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.policy.group_advantage import GROUP_ADVANTAGE
from r1kernels.triton import cdiv, plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.handles import launched

ROWS = 8  # of one program
BLOCK = 128  # rewards that it looks at together


class Batch(NamedTuple):
    rewards: Any
    group_ids: Any
    lengths: Any
    count: Any


class Moments(NamedTuple):
    """Of the rewards of a group, or of the batch."""

    n: Any
    constant: Any  # they are all equal
    mean: Any
    squares: Any  # Σ (R − mean)²


@triton.jit
def unit(largest, n):
    """A power of two times which n numbers up to ``largest`` add up below 2⁶¹; its inverse."""
    exponent = tl.maximum(largest.to(tl.float64).to(tl.int64, bitcast=True) >> 52, 128) - 1022
    bits = (n.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022
    power = 61 - bits - exponent
    return (
        ((1023 + power) << 52).to(tl.float64, bitcast=True),
        ((1023 - power) << 52).to(tl.float64, bitcast=True),
    )


@triton.jit
def members(batch, ids, start, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """A block of the batch: its rewards, and whether they are of the groups, [rows, block]."""
    j = start + tl.arange(0, BLOCK)[None, :]
    here = j < batch.count
    same = here
    if not WHOLE:
        same = here & (tl.load(batch.group_ids + j, here, 0) == ids)
    return tl.load(batch.rewards + j, here, 0.0), same


@triton.jit
def moments(
    batch, ids, WHOLE: tl.constexpr, SQUARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of the groups ``ids`` [rows, 1], or with WHOLE of the batch; [rows]."""
    n = tl.zeros([ROWS, BLOCK], tl.int32)
    low = tl.full([ROWS, BLOCK], float("inf"), tl.float32)
    high = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    poison = tl.zeros([ROWS, BLOCK], tl.float32)  # NaN if any reward is not finite
    for start in range(0, batch.count, BLOCK):
        r, same = members(batch, ids, start, WHOLE, BLOCK)
        n += same.to(tl.int32)
        low = tl.minimum(low, tl.where(same, r, float("inf")))
        high = tl.maximum(high, tl.where(same, r, float("-inf")))
        poison += tl.where(same, r - r, 0.0)
    n = tl.sum(n, 1)
    low = tl.min(low, 1)
    high = tl.max(high, 1)

    scale, inverse = unit(tl.maximum(tl.abs(low), tl.abs(high)), n)
    total = tl.zeros([ROWS, BLOCK], tl.int64)
    for start in range(0, batch.count, BLOCK):
        r, same = members(batch, ids, start, WHOLE, BLOCK)
        total += tl.where(same, (r.to(tl.float64) * scale[:, None]).to(tl.int64), 0)
    mean = tl.sum(total, 1).to(tl.float64) * inverse / n + tl.sum(poison, 1)

    squares = mean * 0.0
    if SQUARES:
        furthest = tl.maximum(high - mean, mean - low)
        scale, inverse = unit(furthest * furthest, n)
        total = tl.zeros([ROWS, BLOCK], tl.int64)
        for start in range(0, batch.count, BLOCK):
            r, same = members(batch, ids, start, WHOLE, BLOCK)
            away = r.to(tl.float64) - mean[:, None]
            total += tl.where(same, (away * away * scale[:, None]).to(tl.int64), 0)
        squares += tl.sum(total, 1).to(tl.float64) * inverse
    return Moments(n, low == high, mean, squares)


@triton.jit
def weighted_mean(batch, ids, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Σ length·R / Σ length of the groups ``ids``, [rows]."""
    column = tl.arange(0, BLOCK)[None, :]
    longest = tl.zeros([ROWS, BLOCK], tl.float64)
    largest = tl.zeros([ROWS, BLOCK], tl.float64)
    for start in range(0, batch.count, BLOCK):
        r, same = members(batch, ids, start, False, BLOCK)
        length = tl.load(batch.lengths + start + column, same, 0.0).to(tl.float64)
        longest = tl.maximum(longest, tl.abs(length))
        largest = tl.maximum(largest, tl.abs(length * r))
    scale, inverse = unit(tl.max(longest, 1), n)
    scale_product, inverse_product = unit(tl.max(largest, 1), n)
    total = tl.zeros([ROWS, BLOCK], tl.int64)
    total_product = tl.zeros([ROWS, BLOCK], tl.int64)
    for start in range(0, batch.count, BLOCK):
        r, same = members(batch, ids, start, False, BLOCK)
        length = tl.load(batch.lengths + start + column, same, 0.0).to(tl.float64)
        total += (length * scale[:, None]).to(tl.int64)
        total_product += (length * r * scale_product[:, None]).to(tl.int64)
    product = tl.sum(total_product, 1).to(tl.float64) * inverse_product
    return product / (tl.sum(total, 1).to(tl.float64) * inverse)


@triton.jit
def advantages(
    row, batch, eps,
    SCALE: tl.constexpr, BASELINE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the completions ``row`` [rows], in float32."""
    here = row < batch.count
    ids = tl.load(batch.group_ids + row, here, 0)[:, None]
    r = tl.load(batch.rewards + row, here, 0.0).to(tl.float64)
    group = moments(batch, ids, False, SCALE == "group", ROWS, BLOCK)
    advantage = r - group.mean
    if BASELINE == "rloo":
        advantage = advantage * group.n / (group.n - 1)
    if BASELINE == "opo":
        advantage = r - weighted_mean(batch, ids, group.n, ROWS, BLOCK)
    if SCALE == "group":
        advantage = advantage / (tl.sqrt(group.squares / (group.n - 1)) + eps)
    if SCALE == "batch":
        whole = moments(batch, ids, True, True, 1, BLOCK)
        advantage = advantage / (tl.sqrt(whole.squares / tl.maximum(whole.n - 1, 1)) + eps)
    return tl.where(group.constant, group.mean - group.mean, advantage).to(tl.float32)


@launched
@triton.jit
def kernel(
    out, batch, eps,
    SCALE: tl.constexpr, BASELINE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    value = advantages(row, batch, eps, SCALE, BASELINE, ROWS, BLOCK)
    tl.store(out + row, value, row < batch.count)


@plug_in(GROUP_ADVANTAGE)
def group_advantage(
    rewards: Tensor,
    group_ids: Tensor,
    lengths: Tensor | None,
    scale: str,
    baseline: str,
    eps: float,
) -> Tensor:
    count = rewards.shape[0]
    out = torch.empty_like(rewards, memory_format=torch.contiguous_format)
    if count > 0:
        lengths = None if lengths is None else lengths.contiguous()
        batch = Batch(rewards.contiguous(), group_ids.contiguous(), lengths, count)
        kernel[(cdiv(count, ROWS),)](out, batch, eps, scale, baseline, ROWS, BLOCK)
    return out


def _build(lengths: str | None, scale: str, baseline: str) -> Build:
    signature = {"out": "*fp32", "batch": Batch("*fp32", "*i64", lengths, "i32"), "eps": "fp32"}
    chosen = {"SCALE": scale, "BASELINE": baseline, "ROWS": ROWS, "BLOCK": BLOCK}
    return Build(kernel, signature, chosen)


BUILDS = (_build(None, "group", "mean"), _build("*fp32", "batch", "opo"))
