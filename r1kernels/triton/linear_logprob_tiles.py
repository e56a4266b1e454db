"""Tiles of logits as they leave the matrix product: fp32, never rounded, never stored.

Rows are taken in an order made on the device, so that those with nothing to compute come last; how
many have is known on the device only, and programs past them return at once. A value stored for
the backward pass is the softmax's, times the slope of the softcap, less 1 at the target: what the
upstream gradient, −logit_scale/temperature times, is to be multiplied with.

Columns of the shares past the last one of the vocabulary hold 0.

What goes with the number of rows is not specialised on: nothing is compiled again for another one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton import gemm
from r1kernels.triton.elementary import expm1, tanh
from r1kernels.triton.handles import launched


@triton.jit
def tile_of_products(
    hidden, weight, rows, first, columns, depth, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """hidden[rows] · weight[first : first + COLUMNS]ᵀ; past the last column, its values again."""
    column = tl.minimum(first + tl.arange(0, COLUMNS), columns - 1)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    return gemm.rows_times_rows(acc, hidden, rows, weight, column, depth, width, STEP, EVEN)


@triton.jit
def logits(acc, bias, temperature, rows, first, columns, logit_scale, softcap):
    """Products of the given rows and the columns from ``first`` on, scaled; −inf past the last."""
    column = first + tl.arange(0, acc.shape[1])
    z = acc
    if bias is not None:
        z += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    z *= logit_scale
    if softcap is not None:
        z = softcap * tanh(z * (1.0 / softcap))
    if temperature is not None:
        z *= (1.0 / tl.load(temperature + rows))[:, None]
    return tl.where((column < columns)[None, :], z, float("-inf"))


@triton.jit
def slope_of_softcap(z, temperature, rows, softcap):
    """Derivative of the softcap where its result, over the temperature, is z; 0 where z is −inf."""
    unit = tl.full(rows.shape, 1.0, tl.float32) / softcap
    if temperature is not None:
        unit *= tl.load(temperature + rows)
    tanh_z = z * (unit[:, None] if len(z.shape) == 2 else unit)
    return tl.where(z == float("-inf"), 0.0, 1.0 - tanh_z * tanh_z)


@triton.jit
def place_of_target(target, rows, first, columns, PART: tl.constexpr):
    """Where each row's target is among the PART columns from ``first`` on, or −1; 32 bits wide."""
    y = tl.load(target + rows)
    here = (y >= first) & (y < tl.minimum(first + PART, columns))
    return tl.where(here, y - first, -1).to(tl.int32)


@triton.jit
def exponentials(z):
    """(z − top, e^{z − top}, top) of each row of a tile; (−inf, 0, −inf) where all are −inf."""
    top = tl.max(z, 1)
    below = z - tl.where(top == float("-inf"), 0.0, top)[:, None]
    return below, tl.exp(below), top


@triton.jit
def forward_part(
    acc, bias, temperature, target, rows, line, exists, kept, tops, sums, dots, own, shares,
    first, columns, shares_stride, logit_scale, softcap,
):  # fmt: skip
    z = logits(acc, bias, temperature, rows, first, columns, logit_scale, softcap)
    PART: tl.constexpr = acc.shape[1]
    column = first + tl.arange(0, PART)
    goal = place_of_target(target, rows, first, columns, PART)
    at_goal = tl.arange(0, PART)[None, :] == goal[:, None]
    tl.store(own + rows, tl.sum(tl.where(at_goal, z, 0.0), 1), mask=exists & (goal >= 0))
    below, e, top = exponentials(z)
    partial = line.to(tl.int64) * tl.cdiv(columns, PART) + first // PART
    exists &= first < columns
    tl.store(tops + partial, top, mask=exists)
    tl.store(sums + partial, tl.sum(e, 1), mask=exists)
    if dots is not None:
        dot = tl.sum(e * tl.maximum(below, -200.0), 1)  # −inf·0 is not 0
        tl.store(dots + partial, dot, mask=exists)
    if shares is not None:
        if softcap is not None:
            e *= slope_of_softcap(z, temperature, rows, softcap)
        at = shares + line.to(tl.int64)[:, None] * shares_stride + column[None, :]
        inside = kept[:, None] & (column < shares_stride)[None, :]
        tl.store(at, e.to(shares.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["size", "shares_rows"])
def forward_tile(
    hidden, weight, bias, temperature, target, order, counts, tops, sums, dots, own, shares,
    start, size, columns, width, shares_stride, shares_rows, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Per row and PART columns: top, Σe^{z−top}, Σe^{z−top}·(z−top); the target's logit.

    Places [start, start + size) of the order are lines 0 to size here; counts = (rows that want a
    gradient, valid rows). tops, sums, dots: [size, parts]. shares, if any, gets the exponentials
    times the slope of the softcap, of those wanted places that are below shares_rows.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(size, ROWS), tl.cdiv(columns, COLUMNS), GROUP
    )
    wanted, valid = tl.load(counts), tl.load(counts + 1)
    line = tile_row * ROWS + tl.arange(0, ROWS)
    place = start + line
    if start + tile_row * ROWS >= valid:
        return
    exists = (place < valid) & (line < size)
    kept = exists & (place < tl.minimum(wanted, shares_rows))
    rows = tl.load(order + tl.minimum(place, valid - 1))
    first = tile_column * COLUMNS
    acc = tile_of_products(
        hidden, weight, rows, first, columns, width, width, ROWS, COLUMNS, STEP, EVEN
    )
    if PART == COLUMNS:
        forward_part(
            acc, bias, temperature, target, rows, line, exists, kept, tops, sums, dots, own, shares,
            first, columns, shares_stride, logit_scale, softcap,
        )  # fmt: skip
    else:
        left, right = gemm.halves(acc)
        forward_part(
            left, bias, temperature, target, rows, line, exists, kept, tops, sums, dots, own,
            shares, first, columns, shares_stride, logit_scale, softcap,
        )  # fmt: skip
        forward_part(
            right, bias, temperature, target, rows, line, exists, kept, tops, sums, dots, own,
            shares, first + PART, columns, shares_stride, logit_scale, softcap,
        )  # fmt: skip


@launched
@triton.jit(do_not_specialize=["shares_rows"])
def forward_row(
    target, temperature, order, counts, tops, sums, dots, own, logprob, entropy, lse, shares,
    start, columns, shares_stride, shares_rows, softcap,
    PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts of one row combined, from the first to the last; its shares normalised in place.

    logprob, entropy and lse of rows that are not valid keep what they hold.
    """
    line = tl.program_id(0)
    place = start + line
    if place >= tl.load(counts + 1):
        return
    row = tl.load(order + place)
    block = tl.arange(0, BLOCK)
    parts = tl.cdiv(columns, PART)
    partial = line.to(tl.int64) * parts
    top = float("-inf")
    for part in range(0, parts, BLOCK):
        exists = part + block < parts
        tops_here = tl.load(tops + partial + part + block, mask=exists, other=float("-inf"))
        top = tl.maximum(top, tl.max(tops_here, 0))
    total, product = 0.0, 0.0
    for part in range(0, parts, BLOCK):
        at, exists = partial + part + block, part + block < parts
        below = tl.load(tops + at, mask=exists, other=float("-inf")) - top
        sums_here = tl.load(sums + at, mask=exists, other=0.0)
        factor = tl.exp(below)
        total += tl.sum(factor * sums_here, 0)
        if dots is not None:
            shift = tl.where(factor > 0, below, 0.0)
            product += tl.sum(
                factor * (tl.load(dots + at, mask=exists, other=0.0) + shift * sums_here), 0
            )
    log_total = tl.log(total)
    z = tl.load(own + row)
    own_logprob = (z - top) - log_total
    tl.store(logprob + row, own_logprob)
    row_lse = top + log_total
    tl.store(lse + row, row_lse)
    if dots is not None:
        tl.store(entropy + row, log_total - product / total)
    if shares is not None:  # noqa: SIM102 (one is of compile time)
        if place < tl.minimum(tl.load(counts), shares_rows):
            goal = tl.load(target + row)
            at_goal = expm1(own_logprob)
            if softcap is not None:
                at_goal *= slope_of_softcap(own_logprob + row_lse, temperature, row, softcap)
            shares += line.to(tl.int64) * shares_stride
            for start_column in range(0, shares_stride, BLOCK):
                column = start_column + block
                exists = column < shares_stride
                e = tl.load(shares + column, mask=exists, other=0.0).to(tl.float32)
                tops_here = tl.load(tops + partial + column // PART, mask=exists, other=0.0)
                share = e * tl.exp(tops_here - row_lse)
                share = tl.where(column == goal, at_goal, share)
                tl.store(shares + column, share.to(shares.dtype.element_ty), mask=exists)


@triton.jit
def gradient_part(
    acc, bias, temperature, target, rows, line, exists, logprob, lse, entropy, dlogprob, dentropy,
    kept, kept_stride, place, is_kept, shares, shares_stride,
    first, first_column, columns, logit_scale, softcap,
):  # fmt: skip
    z = logits(acc, bias, temperature, rows, first, columns, logit_scale, softcap)
    column = first + tl.arange(0, acc.shape[1])
    row_lse, row_logprob = tl.load(lse + rows), tl.load(logprob + rows)
    at_goal = expm1(row_logprob)
    if dentropy is None:
        _, e, top = exponentials(z)
        if softcap is not None:
            e *= slope_of_softcap(z, temperature, rows, softcap)
        share = e.to(shares.dtype.element_ty).to(tl.float32) * tl.exp(top - row_lse)[:, None]
    else:
        g, of_entropy = tl.load(dlogprob + rows), tl.load(dentropy + rows)
        mean = tl.load(entropy + rows)
        logp = z - row_lse[:, None]
        share = tl.exp(logp)
        logp = tl.where(share > 0, logp, 0.0)
        share *= (g + of_entropy * mean)[:, None] + of_entropy[:, None] * logp
        if softcap is not None:
            share *= slope_of_softcap(z, temperature, rows, softcap)
        p_goal = tl.exp(row_logprob)
        goal_logp = tl.where(p_goal == 0, 0.0, row_logprob)  # nothing is left of p·log p at −inf
        at_goal = g * at_goal + of_entropy * p_goal * (goal_logp + mean)
    if softcap is not None:
        at_goal *= slope_of_softcap(row_logprob + row_lse, temperature, rows, softcap)
    goal = place_of_target(target, rows, first, columns, acc.shape[1])
    share = tl.where(tl.arange(0, acc.shape[1])[None, :] == goal[:, None], at_goal[:, None], share)
    share = share.to(shares.dtype.element_ty)
    local = column - first_column
    inside = exists[:, None] & (local < shares_stride)[None, :]
    if kept is not None:
        at = kept + place.to(tl.int64)[:, None] * kept_stride + column[None, :]
        there = is_kept[:, None] & (column < kept_stride)[None, :]
        share = tl.where(is_kept[:, None], tl.load(at, mask=inside & there, other=0.0), share)
    at = shares + line.to(tl.int64)[:, None] * shares_stride + local[None, :]
    tl.store(at, share, mask=inside)


@launched
@triton.jit(do_not_specialize=["size", "last_column"])
def gradient_tile(
    hidden, weight, bias, temperature, target, active, count, places, logprob, lse, entropy,
    dlogprob, dentropy, kept, kept_stride, kept_rows, shares, shares_stride,
    first_column, last_column, size, columns, width, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Shares of the active rows in columns [first_column, last_column): kept ones, others anew.

    A row is kept if its place in the forward pass's order is below kept_rows (on the device).
    What is made anew goes through the same roundings as what was kept. With dentropy, the upstream
    gradients are in the shares already.
    """
    tile_row, tile_column = gemm.tile_of_program(
        tl.cdiv(size, ROWS), tl.cdiv(last_column - first_column, COLUMNS), GROUP
    )
    total = tl.load(count)
    line = tile_row * ROWS + tl.arange(0, ROWS)
    if tile_row * ROWS >= total:
        return
    exists = line < total
    rows = tl.load(active + tl.minimum(line, total - 1))
    place = tl.load(places + rows)
    is_kept = place < tl.load(kept_rows)
    first = first_column + tile_column * COLUMNS
    depth = tl.where(tl.min(is_kept.to(tl.int32), 0) == 1, 0, width)
    acc = tile_of_products(
        hidden, weight, rows, first, columns, depth, width, ROWS, COLUMNS, STEP, EVEN
    )
    if PART == COLUMNS:
        gradient_part(
            acc, bias, temperature, target, rows, line, exists, logprob, lse, entropy, dlogprob,
            dentropy, kept, kept_stride, place, is_kept, shares, shares_stride,
            first, first_column, columns, logit_scale, softcap,
        )  # fmt: skip
    else:
        left, right = gemm.halves(acc)
        gradient_part(
            left, bias, temperature, target, rows, line, exists, logprob, lse, entropy, dlogprob,
            dentropy, kept, kept_stride, place, is_kept, shares, shares_stride,
            first, first_column, columns, logit_scale, softcap,
        )  # fmt: skip
        gradient_part(
            right, bias, temperature, target, rows, line, exists, logprob, lse, entropy, dlogprob,
            dentropy, kept, kept_stride, place, is_kept, shares, shares_stride,
            first + PART, first_column, columns, logit_scale, softcap,
        )  # fmt: skip
