"""Tiles of both heads' logits, as they leave the matrix products: fp32, and never stored.

Logits are in units of log 2. A tile leaves a few numbers a row, which a row's program combines from
the first column to the last; the backward pass makes the tiles again, and stores of each row its
shares: the gradient of the logits but for a factor of the row, as linear_logprob_gradients.py takes
them. Rows are in their own order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from r1kernels.head.triton.linear_logprob_order import factor_of
from r1kernels.head.triton.linear_logprob_tiles import (
    capped_tile,
    masked,
    products,
    slope_of_softcap,
)
from r1kernels.triton import gemm
from r1kernels.triton.elementary import LN2, LOG2E
from r1kernels.triton.handles import launched

LOW = tl.constexpr(-1e30)  # stands for −inf where a difference must stay finite
UNLIKELY = tl.constexpr(-1e4)  # 2 to this power is 0, and 0 times it is not NaN
PARTS = 6  # numbers of a row that a tile leaves


class Side(NamedTuple):
    """A head and its hidden states: tensors as pointers, None where they are absent."""

    hidden: Any
    weight: Any
    bias: Any
    width: Any
    logit_scale: Any
    softcap: Any


@triton.jit
def uncapped(
    side, line, first, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of logits before the temperature, and before the scale where there is no softcap."""
    acc = products(
        side.hidden, side.weight, line, first, rows, columns, depth, side.width,
        ROWS, COLUMNS, STEP, False, False,
    )  # fmt: skip
    return capped_tile(acc, side.bias, first, columns, side.logit_scale, side.softcap)


@triton.jit
def factors(side, temperature, row):
    """[rows]: what ``uncapped`` is multiplied with."""
    ones = row * 0.0 + 1.0
    return ones * factor_of(temperature, row, side.logit_scale, side.softcap)


@triton.jit
def sums(z):
    """Of each row of a tile: its maximum, 2^(z − maximum), and the sum of these."""
    m = tl.maximum(tl.max(z, 1), LOW)
    e = tl.exp2(z - m[:, None])
    return m, e, tl.sum(e, 1)


@launched
@triton.jit(do_not_specialize=["start", "size"])
def forward_tile(
    student, teacher, temperature, parts, start, size, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of rows [start, start + size), lines here, and COLUMNS columns, six numbers a line.

    parts [PARTS, size, tiles]: of the student the maximum m, Σe, Σe·(z − m) and Σe·(z − z of the
    teacher), with e = 2^(z − m); of the teacher the maximum and its sum.
    """
    tile_columns = tl.cdiv(columns, COLUMNS)
    tile_row, tile_column = gemm.tile_of_program(tl.cdiv(size, ROWS), tile_columns, GROUP)
    line, first = tile_row * ROWS, tile_column * COLUMNS
    lines = line + tl.arange(0, ROWS)
    exists = lines < size
    row = tl.minimum(start + lines, rows - 1)
    z = uncapped(
        student, start + line, first, rows, columns, student.width, ROWS, COLUMNS, STEP
    )  # fmt: skip
    q = uncapped(
        teacher, start + line, first, rows, columns, teacher.width, ROWS, COLUMNS, STEP
    )  # fmt: skip
    z = masked(z * factors(student, temperature, row)[:, None], first, columns)
    q = masked(q * factors(teacher, temperature, row)[:, None], first, columns)
    m, e, total = sums(z)
    teacher_m, _, teacher_total = sums(q)
    weighted = tl.sum(e * tl.maximum(z - m[:, None], UNLIKELY), 1)
    apart = tl.sum(tl.where(e == 0, 0.0, e * (z - q)), 1)  # of nothing it is nothing, even at −inf
    at = parts + lines.to(tl.int64) * tile_columns + tile_column
    step = size.to(tl.int64) * tile_columns
    tl.store(at, m, mask=exists)
    tl.store(at + step, total, mask=exists)
    tl.store(at + 2 * step, weighted, mask=exists)
    tl.store(at + 3 * step, apart, mask=exists)
    tl.store(at + 4 * step, teacher_m, mask=exists)
    tl.store(at + 5 * step, teacher_total, mask=exists)


@launched
@triton.jit(do_not_specialize=["start", "size"])
def forward_row(
    parts, kl, entropy, lse, teacher_lse, start, size, tiles, BLOCK: tl.constexpr
):  # fmt: skip
    """The results of one row from the numbers of its tiles."""
    line = tl.program_id(0)
    at = parts + line.to(tl.int64) * tiles
    step = size.to(tl.int64) * tiles
    m, teacher_m = LOW, LOW
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        here = tile < tiles
        m = tl.maximum(m, tl.max(tl.load(at + tile, here, LOW), 0))
        teacher_m = tl.maximum(teacher_m, tl.max(tl.load(at + 4 * step + tile, here, LOW), 0))
    total, weighted, apart, teacher_total = 0.0, 0.0, 0.0, 0.0
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        here = tile < tiles
        below = tl.load(at + tile, here, LOW) - m
        share = tl.exp2(below)
        part = tl.load(at + step + tile, here, 0.0)
        total += tl.sum(share * part, 0)
        entire = tl.load(at + 2 * step + tile, here, 0.0) + tl.maximum(below, UNLIKELY) * part
        weighted += tl.sum(share * entire, 0)
        between = tl.load(at + 3 * step + tile, here, 0.0)
        apart += tl.sum(tl.where(share == 0, 0.0, share * between), 0)
        share = tl.exp2(tl.load(at + 4 * step + tile, here, LOW) - teacher_m)
        teacher_total += tl.sum(share * tl.load(at + 5 * step + tile, here, 0.0), 0)
    log_total = tl.log2(total)
    own, other = m + log_total, teacher_m + tl.log2(teacher_total)
    row = start + line
    tl.store(kl + row, LN2 * (apart / total - (own - other)))
    tl.store(entropy + row, LN2 * (log_total - weighted / total))
    tl.store(lse + row, LN2 * own)
    tl.store(teacher_lse + row, LN2 * other)


@launched
@triton.jit(do_not_specialize=["last_column"])
def gradient_tile(
    student, teacher, temperature, kl, lse, teacher_lse, coefficients, shares, shares_stride,
    first_column, last_column, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """shares [rows, columns from first_column on]: p·((log p − log q) − KL)·slope of the softcap.

    Rows whose coefficient is 0 have none.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(rows, ROWS), tl.cdiv(last_column - first_column, COLUMNS), GROUP
    )
    line, first = tile_row * ROWS, first_column + tile_column * COLUMNS
    lines = line + tl.arange(0, ROWS)
    exists = lines < rows
    row = tl.minimum(lines, rows - 1)
    active = tl.load(coefficients + row, mask=exists, other=0.0) != 0
    any_active = tl.max(active.to(tl.int32), 0) != 0
    depth = tl.where(any_active, student.width, 0)
    teacher_depth = tl.where(any_active, teacher.width, 0)
    x = uncapped(student, line, first, rows, columns, depth, ROWS, COLUMNS, STEP)
    q = uncapped(teacher, line, first, rows, columns, teacher_depth, ROWS, COLUMNS, STEP)
    logp = x * factors(student, temperature, row)[:, None] - (tl.load(lse + row) * LOG2E)[:, None]
    logq = q * factors(teacher, temperature, row)[:, None]
    logq -= (tl.load(teacher_lse + row) * LOG2E)[:, None]
    p = tl.exp2(masked(logp, first, columns))
    share = p * (LN2 * (logp - logq) - tl.load(kl + row)[:, None])
    if student.softcap is not None:
        share *= slope_of_softcap(x, student.softcap)
    share = tl.where(active[:, None] & (p != 0), share, 0.0)
    column = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    at = shares + lines.to(tl.int64)[:, None] * shares_stride + column[None, :]
    tl.store(at, share.to(shares.dtype.element_ty), mask=exists[:, None])
