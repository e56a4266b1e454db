"""Rotary positions of queries and keys in one launch, and back.

A row is one head of one token. A program has some rows of the queries or of the keys: the two
elements of each pair, and what stands past the rotated columns, which is copied. The angles of a
row come from the cache, where the other heads of its token find them too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.elementwise.rope import ROPE
from r1kernels.triton import cdiv, launch, next_power_of_2, plug_in
from r1kernels.triton.handles import UNFUSED, launched


class Heads(NamedTuple):
    """Queries or keys [B, H, S, D] as the kernel takes them: strides of batch, head, position."""

    x: Any
    y: Any
    heads: Any
    x_batch: Any
    x_head: Any
    x_position: Any
    y_batch: Any
    y_head: Any
    y_position: Any


class Angles(NamedTuple):
    """Cosines and sines [B or 1, S, Dr]; of a shared table the stride of the batch is 0."""

    cos: Any
    sin: Any
    cos_batch: Any
    cos_position: Any
    sin_batch: Any
    sin_position: Any


@triton.jit
def turned(a, b, cos, sin, cos_b, sin_b, INVERSE: tl.constexpr):
    """Each product is rounded to the tables' dtype as PyTorch does, and then their sum."""
    kind = cos.dtype
    a, b, cos, sin = a.to(tl.float32), b.to(tl.float32), cos.to(tl.float32), sin.to(tl.float32)
    cos_b, sin_b = cos_b.to(tl.float32), sin_b.to(tl.float32)
    ac, bc = (a * cos).to(kind).to(tl.float32), (b * cos_b).to(kind).to(tl.float32)
    if INVERSE:
        first = ac + (b * sin_b).to(kind).to(tl.float32)
        second = bc - (a * sin).to(kind).to(tl.float32)
    else:
        first = ac - (b * sin).to(kind).to(tl.float32)
        second = bc + (a * sin_b).to(kind).to(tl.float32)
    return first.to(kind), second.to(kind)


@triton.jit
def split(at, inside, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """The even and the odd elements of rows."""
    return tl.split(tl.reshape(tl.load(at, inside, 0.0), [ROWS, PAIRS, 2]))


@triton.jit
def turn(
    given, angles, length, first, rows, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """Rotate the rows from ``first`` on: those of all heads of a token one after another."""
    row = first + tl.arange(0, ROWS)[:, None]
    here = row < rows
    head, token = row % given.heads, row // given.heads
    batch, position = (token // length).to(tl.int64), (token % length).to(tl.int64)
    x = given.x + batch * given.x_batch + head * given.x_head + position * given.x_position
    y = given.y + batch * given.y_batch + head * given.y_head + position * given.y_position
    cos = angles.cos + batch * angles.cos_batch + position * angles.cos_position
    sin = angles.sin + batch * angles.sin_batch + position * angles.sin_position

    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        inside = here & (column < 2 * HALF)
        a, b = split(x + column, inside, ROWS, PAIRS)
        c_a, c_b = split(cos + column, inside, ROWS, PAIRS)
        s_a, s_b = split(sin + column, inside, ROWS, PAIRS)
        a, b = turned(a, b, c_a, s_a, c_b, s_b, INVERSE)
        both = tl.reshape(tl.join(a, b), [ROWS, 2 * PAIRS])
        tl.store(y + column, both.to(y.dtype.element_ty), inside)
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        inside = here & (pair < HALF)
        a, b = tl.load(x + pair, inside, 0.0), tl.load(x + HALF + pair, inside, 0.0)
        c_a, c_b = tl.load(cos + pair, inside, 0.0), tl.load(cos + HALF + pair, inside, 0.0)
        s_a, s_b = tl.load(sin + pair, inside, 0.0), tl.load(sin + HALF + pair, inside, 0.0)
        a, b = turned(a, b, c_a, s_a, c_b, s_b, INVERSE)
        tl.store(y + pair, a.to(y.dtype.element_ty), inside)
        tl.store(y + HALF + pair, b.to(y.dtype.element_ty), inside)
    if REST > 0:
        column = 2 * HALF + tl.arange(0, REST)[None, :]
        inside = here & (column < WIDTH)
        tl.store(y + column, tl.load(x + column, inside, 0.0), inside)


@launched
@triton.jit(do_not_specialize=["tokens", "length"])
def kernel(
    q, k, angles, tokens, length, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    of_queries = tl.cdiv(tokens * q.heads, ROWS)
    if tl.program_id(0) < of_queries:
        turn(
            q, angles, length, tl.program_id(0) * ROWS, tokens * q.heads, INTERLEAVED, INVERSE,
            HALF, WIDTH, ROWS, PAIRS, REST,
        )  # fmt: skip
    else:
        turn(
            k, angles, length, (tl.program_id(0) - of_queries) * ROWS, tokens * k.heads,
            INTERLEAVED, INVERSE, HALF, WIDTH, ROWS, PAIRS, REST,
        )  # fmt: skip


def heads_of(x: Tensor, y: Tensor) -> Heads:
    return Heads(x, y, x.shape[1], *x.stride()[:3], *y.stride()[:3])


def angles_of(cos: Tensor, sin: Tensor) -> Angles:
    cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (cos, sin))
    strides = [(0 if t.shape[0] == 1 else t.stride(0), t.stride(1)) for t in (cos, sin)]
    return Angles(cos, sin, *strides[0], *strides[1])


def able(q: Tensor, *_: Any) -> bool | str:
    return launch.absent("rope", q.device) or True


@plug_in(ROPE, able)
def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    batch, _, length, width = q.shape
    given = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k)]
    made = [torch.empty_like(x) for x in given]
    tokens, half = batch * length, cos.shape[-1] // 2
    if tokens * width > 0:
        tile = sizes(half, width, **launch.parameters("rope", q.device, q.dtype))
        programs = sum(cdiv(tokens * x.shape[1], tile["ROWS"]) for x in given)
        kernel[(programs,)](
            *map(heads_of, given, made), angles_of(cos, sin), tokens, length, interleaved, inverse,
            half, width, **tile, **UNFUSED,
        )  # fmt: skip
    for index, x in enumerate((q, k)):
        if x is not given[index]:  # the order in memory of what was given
            made[index] = torch.empty_like(x).copy_(made[index])
    return made[0], made[1]


def sizes(half: int, width: int, ELEMENTS: int, DEPTH: int) -> dict[str, int]:
    """ELEMENTS of pairs a program, but at least one row, DEPTH of them a thread."""
    pairs = max(next_power_of_2(half), 8)
    rest = next_power_of_2(width - 2 * half) if width > 2 * half else 0
    rows = max(ELEMENTS // (2 * pairs), 1)
    warps = min(max(2 * rows * pairs // (32 * DEPTH), 1), 32)
    return {"ROWS": rows, "PAIRS": pairs, "REST": rest, "num_warps": warps}
