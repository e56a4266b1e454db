"""Stable counting sort of slots by expert in two launches: count, then scatter.

A program has a run of neighbouring slots. The first launch counts each run's slots by expert; in
the second every program adds up the runs before its own, which tells it where to go on. Integers
alone, without atomics in memory: the order of slots is kept because ranks are counted, not drawn.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.moe.sort import MOE_SORT, padded_rows
from r1kernels.triton import cdiv, next_power_of_2, plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.handles import launched

TILE = 128  # slots that are compared with each other
PROGRAMS = 128  # at most; every one of them reads the counts of all
COUNTS = 8192  # of them that it reads at once


@triton.jit
def expert_of(ids, slot, last, EXPERTS: tl.constexpr):
    """The experts of slots below ``last``, EXPERTS for none."""
    expert = tl.load(ids + slot, slot < last, EXPERTS)
    return tl.where((expert >= 0) & (expert < EXPERTS), expert, EXPERTS).to(tl.int32)


@launched
@triton.jit(do_not_specialize=["slots", "rows", "run", "programs"])
def count(
    parts, gather, ids, slots, rows, run, programs,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """How many slots of each run go to each expert; and ``gather`` has no slots yet."""
    b = tl.program_id(0)
    last = tl.minimum((b + 1) * run, slots)
    found = tl.zeros([WIDTH], tl.int32)
    for start in range(b * run, last, TILE):
        expert = expert_of(ids, start + tl.arange(0, TILE), last, EXPERTS)
        found += tl.histogram(expert, WIDTH, expert < EXPERTS)
    tl.store(parts + b * WIDTH + tl.arange(0, WIDTH), found)
    for start in range(b * TILE, rows, programs * TILE):
        row = start + tl.arange(0, TILE)
        tl.store(gather + row, tl.full([TILE], -1, tl.int32), row < rows)


@launched
@triton.jit(do_not_specialize=["slots", "run", "programs"])
def scatter(
    counts, offsets, gather, inverse, parts, ids, slots, run, programs, align,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Each slot's row: where its expert begins, plus how many slots of that expert precede it."""
    b = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.int32)
    before = tl.zeros([WIDTH], tl.int32)
    for first in range(0, programs, COUNTS // WIDTH):
        part = first + tl.arange(0, COUNTS // WIDTH)[:, None]
        n = tl.load(parts + part * WIDTH + column[None, :], part < programs, 0)
        total += tl.sum(n, 0)
        before += tl.sum(tl.where(part < b, n, 0), 0)
    room = tl.cdiv(total, align) * align
    stop = tl.cumsum(room, 0)
    if b == 0:
        here = column < EXPERTS
        tl.store(counts + column, total, here)
        tl.store(offsets + column, stop - room, here)
        tl.store(offsets + column + 1, stop, column == EXPERTS - 1)

    following = stop - room + before  # the row of each expert's next slot
    last = tl.minimum((b + 1) * run, slots)
    i = tl.arange(0, TILE)
    for start in range(b * run, last, TILE):
        expert = expert_of(ids, start + i, last, EXPERTS)
        # An earlier slot of the same expert is less than TILE below; every other one is not.
        key = 2 * TILE * expert + i
        below = (key[None, :] - key[:, None] - 1).to(tl.uint32, bitcast=True)
        rank = tl.sum((below < TILE).to(tl.int32), 0)
        there = expert < EXPERTS
        row = tl.gather(following, tl.where(there, expert, 0), 0) + rank
        tl.store(inverse + start + i, tl.where(there, row, -1), start + i < last)
        tl.store(gather + row, start + i, there)
        following += tl.histogram(expert, WIDTH, there)


@plug_in(MOE_SORT)
def moe_sort(ids: Tensor, num_experts: int, align: int) -> tuple[Tensor, ...]:
    ids = ids.contiguous()
    slots = ids.numel()
    rows = padded_rows(slots, num_experts, align)
    counts = ids.new_empty(num_experts, dtype=torch.int32)
    offsets, gather = counts.new_empty(num_experts + 1), counts.new_empty(rows)
    inverse = counts.new_empty(ids.shape)
    run = TILE * max(cdiv(slots, TILE * PROGRAMS), 1)
    programs = max(cdiv(slots, run), 1)
    width = max(next_power_of_2(num_experts), 32)
    parts = counts.new_empty(programs, width)
    count[(programs,)](parts, gather, ids, slots, rows, run, programs, num_experts, width, TILE)
    scatter[(programs,)](
        counts, offsets, gather, inverse, parts, ids, slots, run, programs, align,
        num_experts, width, TILE, COUNTS,
    )  # fmt: skip
    return counts, offsets, gather, inverse


def _builds(experts: int) -> tuple[Build, ...]:
    tensors = ("counts", "offsets", "gather", "inverse", "parts")
    numbers = ("slots", "rows", "run", "programs", "align")
    signature: dict[str, Any] = dict.fromkeys(tensors, "*i32") | dict.fromkeys(numbers, "i32")
    signature["ids"] = "*i64"
    aligned = (*tensors, "ids")
    sizes = {"EXPERTS": experts, "WIDTH": max(next_power_of_2(experts), 32), "TILE": TILE}
    return (
        Build(count, signature, sizes, aligned=aligned),
        Build(scatter, signature, sizes | {"COUNTS": COUNTS}, aligned=aligned),
    )


BUILDS = (*_builds(7), *_builds(256), *_builds(1024))
