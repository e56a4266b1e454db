"""One token a row and its log-probability: one read of the logits, then of one block of each row.

``weigh`` gives a program a few blocks of a row, ``draw`` a row. The arithmetic is that of
r1kernels/head/sample_logprob.py, to the bit; the log-probability is made as fast as it can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.head import sample_logprob as definition
from r1kernels.head.sample_logprob import BLOCK, SAMPLE_LOGPROB
from r1kernels.triton import cdiv, launch, next_power_of_2, plug_in
from r1kernels.triton.build import AMD, NVIDIA, Build
from r1kernels.triton.elementary import LN2, LOG2E
from r1kernels.triton.handles import UNFUSED, launched

LOWEST = tl.constexpr(definition.LOWEST)
NOT_A_NUMBER = tl.constexpr(definition.NOT_A_NUMBER)
ROUNDS = tl.constexpr(definition.ROUNDS)
MOST_RATE = tl.constexpr(definition.MOST_RATE)
WHOLE = tl.constexpr(2.0**23)  # a float32 from here on is a whole number
MOST_OF_BLOCK = tl.constexpr(definition.MOST_OF_BLOCK)
PER_ONE = tl.constexpr(2.0**-definition.BITS)
C5, C4, C3, C2, C1, C0 = (tl.constexpr(c * 2.0**definition.BITS) for c in definition.COEFFICIENTS)


class Rows(NamedTuple):
    """What both kernels are given: tensors as pointers, None for no temperature."""

    logits: Any
    temperature: Any
    columns: Any
    row_stride: Any


@triton.jit
def rate_of(given, row):
    """What the logits are times, to become exponents of 2; and whether the largest is wanted."""
    if given.temperature is None:
        rate = LOG2E
        greedy = False
    else:
        temperature = tl.load(given.temperature + row)
        greedy = temperature == 0
        rate = tl.minimum(tl.div_rn(LOG2E, tl.where(greedy, 1.0, temperature)), MOST_RATE)
    return rate, greedy


@triton.jit
def power(z):
    """2^(40 + z) for z ≤ 0, and what outweighs all others for NaN."""
    z = tl.where(z == z, tl.maximum(z, LOWEST), NOT_A_NUMBER)
    whole = (z + ROUNDS) - ROUNDS
    f = z - whole
    p = C5 * f + C4
    p = p * f + C3
    p = p * f + C2
    p = p * f + C1
    p = p * f + C0
    bits = p.to(tl.int32, bitcast=True) + (whole.to(tl.int32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weights_of(logits, max_logit, rate):
    """Whole numbers, to nearest even."""
    w = power((logits - tl.where(max_logit == float("-inf"), 0.0, max_logit)) * rate)
    return tl.where(w < WHOLE, (w + WHOLE) - WHOLE, w).to(tl.int64)


@triton.jit
def load_logits(given, row, column):
    at = given.logits + row.to(tl.int64) * given.row_stride + column
    return tl.load(at, column < given.columns, float("-inf")).to(tl.float32)


@launched
@triton.jit
def weigh(given, block_max, sums, blocks, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """The largest logit and the sum of weights of some blocks of a row."""
    groups = tl.cdiv(blocks, DEPTH)
    row = tl.program_id(0) // groups
    block = tl.program_id(0) % groups * DEPTH + tl.arange(0, DEPTH)
    rate, _ = rate_of(given, row)
    x = load_logits(given, row, block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :])
    max_logit = tl.max(x, 1)
    at = row.to(tl.int64) * blocks + block
    here = block < blocks
    tl.store(block_max + at, max_logit, here)
    tl.store(sums + at, tl.sum(weights_of(x, max_logit[:, None], rate), 1), here)


@launched
@triton.jit
def draw(
    given, uniform, token, logprob, block_max, sums, blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A block of a row by the shares of all, then a token of it."""
    row = tl.program_id(0)
    rate, greedy = rate_of(given, row)
    n = tl.arange(0, BLOCKS)
    at = row.to(tl.int64) * blocks + n
    max_of = tl.load(block_max + at, n < blocks, float("-inf"))
    sum_of = tl.load(sums + at, n < blocks, 0)
    max_logit = tl.max(max_of, 0)
    scale = power((max_of - max_logit) * rate).to(tl.float64) * PER_ONE
    share = (sum_of.to(tl.float64) * scale).to(tl.int64)
    ends = tl.cumsum(share, 0)
    total = tl.sum(share, 0)
    u = tl.load(uniform + row).to(tl.float64, bitcast=True)
    target = tl.minimum((u * total.to(tl.float64)).to(tl.int64), total - 1)

    drawn = tl.sum((ends <= target).to(tl.int32), 0)
    if given.temperature is not None:
        first = tl.min(tl.where(max_of == max_logit, n, BLOCKS), 0)
        drawn = tl.where(greedy, first, drawn)
    drawn = tl.minimum(drawn, blocks - 1)
    its = n == drawn
    target -= tl.sum(tl.where(its, ends - share, 0), 0)
    within = (target.to(tl.float64) / tl.sum(tl.where(its, scale, 0.0), 0)).to(tl.int64)
    within = tl.minimum(within, tl.sum(tl.where(its, sum_of, 0), 0) - 1)

    lane = tl.arange(0, BLOCK)
    x = load_logits(given, row, drawn * BLOCK + lane)
    its_max = tl.max(x, 0)
    index = tl.sum((tl.cumsum(weights_of(x, its_max, rate), 0) <= within).to(tl.int32), 0)
    if given.temperature is not None:
        first = tl.min(tl.where(x == its_max, lane, BLOCK), 0)
        index = tl.where(greedy, first, index)
    index = tl.minimum(index, BLOCK - 1)

    regular = (max_logit > float("-inf")) & (tl.max(sum_of, 0) <= MOST_OF_BLOCK)
    z = (tl.sum(tl.where(lane == index, x, 0.0), 0) - max_logit) * rate
    log_total = tl.log2((total.to(tl.float64) * PER_ONE).to(tl.float32))
    tl.store(token + row, tl.where(regular, drawn * BLOCK + index, 0).to(tl.int64))
    tl.store(logprob + row, tl.where(regular, (z - log_total) * LN2, float("nan")))


def tabled(logits: Tensor, *_: Any) -> bool | str:
    return launch.absent("sample_logprob.weigh", logits.device) or True


@plug_in(SAMPLE_LOGPROB, tabled)
def sample_logprob(
    logits: Tensor, uniform: Tensor, temperature: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, columns = logits.shape
    token = logits.new_empty(rows, dtype=torch.int64)
    logprob = logits.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return token, logprob
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    temperature = None if temperature is None else temperature.contiguous()
    given = Rows(logits, temperature, columns, logits.stride(0))
    blocks = cdiv(columns, BLOCK)
    block_max, sums = logprob.new_empty(rows, blocks), token.new_empty(rows, blocks)
    tile = launch.parameters("sample_logprob.weigh", logits.device, logits.dtype)
    # Narrow rows take fewer threads.
    depth = min(next_power_of_2(blocks), tile["DEPTH"])
    warps = max(tile["num_warps"] * depth // tile["DEPTH"], 1)
    grid = (rows * cdiv(blocks, depth),)
    weigh[grid](given, block_max, sums, blocks, BLOCK, depth, num_warps=warps, **UNFUSED)
    draw[(rows,)](
        given, uniform.contiguous(), token, logprob, block_max, sums, blocks, BLOCK,
        next_power_of_2(blocks), num_warps=4, **UNFUSED,
    )  # fmt: skip
    return token, logprob


def builds(dtype: str, temperature: str | None) -> Iterator[Build]:
    signature = {
        "given": Rows(f"*{dtype}", temperature, "i32", "i32"),
        "uniform": "*i64", "token": "*i64", "logprob": "*fp32", "block_max": "*fp32",
        "sums": "*i64", "blocks": "i32",
    }  # fmt: skip
    aligned = ("given.logits", "given.columns", "given.row_stride")
    for target in (*NVIDIA, AMD):
        tile = launch.table()["sample_logprob.weigh"][str(target)]
        tile = dict(tile["32" if dtype == "fp32" else "16"])
        options = {"num_warps": tile.pop("num_warps"), **UNFUSED}
        expects = dict.fromkeys(NVIDIA, r"ld\.global\.v4")
        constants = {"BLOCK": BLOCK, **tile}
        yield Build(weigh, signature, constants, options, expects, (target,), aligned)
    yield Build(
        draw, signature, {"BLOCK": BLOCK, "BLOCKS": 256}, {"num_warps": 4, **UNFUSED},
        dict.fromkeys(NVIDIA, r"div\.rn\.f64"),
    )  # fmt: skip


BUILDS = (*builds("bf16", None), *builds("bf16", "*fp32"), *builds("fp32", "*fp32"))
