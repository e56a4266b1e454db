"""Tiles of logits as they leave the matrix product: fp32, never rounded, never stored.

Rows are taken in the order of linear_logprob_order.py, so that those with nothing to compute come
last; how many have is known on the device only, and tiles past them are left out. What is stored
for the backward pass, a row's shares, are its exponentials, in units of log 2 and relative to its
anchor, times the slope of the softcap. A row's softmax is its shares over their sum: a factor of
the row, which the products of the backward pass apply to what is smaller. At the target stands what
gives the softmax less 1.

Where an anchor is of no use, or so far below that exponentials would leave the range, a tile's are
relative to its own largest logit; ``shifts`` says by how much, and the row's shares are stored
normalised in the end.

Columns of the shares past the last one of the vocabulary hold 0. What goes with the number of rows
is not specialised on: nothing is compiled again for another one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.head.triton.linear_logprob_order import NORMALISED, anchor_of, capped
from r1kernels.triton import gemm
from r1kernels.triton.elementary import LN2, LOG2E, expm1, minimum
from r1kernels.triton.handles import launched

# Exponentials up to 2 to this power are summed, stored and multiplied as they are.
LARGEST = tl.constexpr(64.0)


@triton.jit
def products(
    hidden, weight, first_line, first, size, columns, depth, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """hidden[first_line :]·weight[first :]ᵀ; what is past the last line or column is undefined."""
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    if TMA:
        return gemm.tma_rows_times_rows(acc, hidden, first_line, weight, first, depth, STEP)
    else:
        line = tl.minimum(first_line + tl.arange(0, ROWS), size - 1)
        column = tl.minimum(first + tl.arange(0, COLUMNS), columns - 1)
        return gemm.rows_times_rows(acc, hidden, line, weight, column, depth, width, STEP, EVEN)


@triton.jit
def capped_tile(acc, bias, first, columns, logit_scale, softcap):
    if bias is None:
        return capped(acc, None, logit_scale, softcap)
    else:
        column = first + tl.arange(0, acc.shape[1])
        offset = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        return capped(acc, offset[None, :], logit_scale, softcap)


@triton.jit
def masked(exponent, first, columns):
    if first + exponent.shape[1] > columns:
        column = first + tl.arange(0, exponent.shape[1])
        exponent = tl.where((column < columns)[None, :], exponent, float("-inf"))
    return exponent


@triton.jit
def shift_of(largest, usable):
    """How much exponents up to ``largest`` must be lowered by."""
    return tl.where(((largest > LARGEST) | ~usable) & (largest != float("-inf")), largest, 0.0)


@triton.jit
def slope_of_softcap(x, softcap):
    """Derivative of the softcap where its result is x."""
    unit = x / softcap
    return 1.0 - unit * unit


@triton.jit
def pieces(acc, PART: tl.constexpr):
    """The tile, or its halves: what follows the product may have room for one at a time only."""
    if acc.shape[1] == PART:
        return (acc,)
    else:
        return gemm.halves(acc)


@triton.jit
def slope_at_target(z, temperature, rows, softcap):
    return slope_of_softcap(z if temperature is None else z * tl.load(temperature + rows), softcap)


@triton.jit
def forward_part(
    acc, bias, targets, factors, anchors, shifts, sums, dots, own, shares,
    first_line, start, size, valid, wanted, first, columns, shares_stride, shares_lines,
    logit_scale, softcap, TMA: tl.constexpr,
):  # fmt: skip
    PART: tl.constexpr = acc.shape[1]
    line = first_line + tl.arange(0, acc.shape[0])
    rank = start + line
    exists = (line < size) & (rank < valid)
    target = tl.load(targets + rank, mask=exists, other=-1) - first
    has_target = (target >= 0) & (target < PART)
    factor = tl.load(factors + rank, mask=exists, other=0.0)
    anchor = tl.load(anchors + rank, mask=exists, other=0.0)
    usable = anchor == anchor
    x = capped_tile(acc, bias, first, columns, logit_scale, softcap)
    exponent = tl.fma(x, factor[:, None], tl.where(usable, -anchor, 0.0)[:, None])
    exponent = masked(exponent, first, columns)
    shift = shift_of(tl.max(exponent, 1), usable)
    if tl.max((has_target | (shift != 0)).to(tl.int32), 0) != 0:  # few tiles
        is_target = tl.arange(0, PART)[None, :] == target[:, None]
        tl.store(own + rank, tl.sum(tl.where(is_target, exponent, 0.0), 1), mask=has_target)
        exponent -= shift[:, None]
    e = tl.exp2(exponent)
    partial = line.to(tl.int64) * tl.cdiv(columns, PART) + first // PART
    exists &= first < columns
    tl.store(shifts + partial, shift, mask=exists)
    tl.store(sums + partial, tl.sum(e, 1), mask=exists)
    if dots is not None:
        dot = tl.sum(e * tl.maximum(exponent, -200.0), 1)  # −inf·0 is not 0
        tl.store(dots + partial, dot, mask=exists)
    if shares is not None:  # noqa: SIM102 (one is of compile time)
        if start + first_line < wanted:
            if softcap is not None:
                e *= slope_of_softcap(x, softcap)
            if TMA:
                shares.store([first_line, first], e.to(shares.dtype))
            else:
                column = first + tl.arange(0, PART)
                at = shares + line.to(tl.int64)[:, None] * shares_stride + column[None, :]
                inside = (line < shares_lines)[:, None] & (column < shares_stride)[None, :]
                tl.store(at, e.to(shares.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["start", "size", "shares_lines"])
def forward_tile(
    hidden, weight, bias, counts, targets, factors, anchors, shifts, sums, dots, own, shares,
    start, size, columns, width, shares_stride, shares_lines, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Per row and PART columns: shift, Σe, Σe·log₂e of its exponentials e; own, the target's log₂e.

    Ranks [start, start + size) are lines 0 to size here; counts = (wanted rows, valid rows).
    hidden is in the order. shifts, sums, dots: [size, parts]. shares, if any, gets the exponentials
    times the slope of the softcap, of every tile with a wanted row in it.

    TMA: hidden, weight and shares are tensor descriptors, and a program makes one tile after the
    other, in one loop over the steps of all: the next tile's loads are under way while a tile ends.
    """
    wanted, valid = tl.load(counts), tl.load(counts + 1)
    tile_rows = tl.cdiv(tl.maximum(tl.minimum(valid - start, size), 0), ROWS)
    tile_columns = tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    if TMA:
        steps = tl.cdiv(width, STEP)
        turns = tl.cdiv(tl.maximum(tile_rows * tile_columns - tile, 0), tl.num_programs(0))
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        line, first, step = 0, 0, 0
        for _ in range(0, turns * steps):
            if step == 0:
                tile_row, tile_column = gemm.tile_of(tile, tile_rows, tile_columns, GROUP)
                line, first = tile_row * ROWS, tile_column * COLUMNS
                tile += tl.num_programs(0)
            left = hidden.load([start + line, step * STEP])
            right = weight.load([first, step * STEP])
            acc = gemm.multiply_add(left, right.T, acc)
            step += 1
            if step == steps:
                forward_parts(
                    acc, bias, targets, factors, anchors, shifts, sums, dots, own, shares,
                    line, start, size, valid, wanted, first, columns, shares_stride, shares_lines,
                    logit_scale, softcap, PART, TMA,
                )  # fmt: skip
                acc = tl.zeros((ROWS, COLUMNS), tl.float32)
                step = 0
    elif tile < tile_rows * tile_columns:
        tile_row, tile_column = gemm.tile_of(tile, tile_rows, tile_columns, GROUP)
        line, first = tile_row * ROWS, tile_column * COLUMNS
        acc = products(
            hidden, weight, start + line, first, start + size, columns, width, width,
            ROWS, COLUMNS, STEP, EVEN, TMA,
        )  # fmt: skip
        forward_parts(
            acc, bias, targets, factors, anchors, shifts, sums, dots, own, shares,
            line, start, size, valid, wanted, first, columns, shares_stride, shares_lines,
            logit_scale, softcap, PART, TMA,
        )  # fmt: skip


@triton.jit
def forward_parts(
    acc, bias, targets, factors, anchors, shifts, sums, dots, own, shares,
    line, start, size, valid, wanted, first, columns, shares_stride, shares_lines,
    logit_scale, softcap, PART: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    parts = pieces(acc, PART)
    for part in tl.static_range(acc.shape[1] // PART):
        forward_part(
            parts[part], bias, targets, factors, anchors, shifts, sums, dots, own, shares,
            line, start, size, valid, wanted, first + part * PART, columns, shares_stride,
            shares_lines, logit_scale, softcap, TMA,
        )  # fmt: skip


@launched
@triton.jit(do_not_specialize=["start", "shares_lines"])
def forward_row(
    temperature, order, counts, targets, anchors, shifts, sums, dots, own, logprob, entropy, lse,
    shares, coefficients, start, columns, shares_stride, shares_lines, logit_scale, softcap,
    ROWS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts of one row combined, from the first to the last; its share at the target.

    Shares of shifted rows are normalised in place, and their anchors marked; those of rows that
    are no number become 0, so that only the rows' factors are none. coefficients, if any, gets the
    factor of a row without its upstream gradient.
    """
    line = tl.program_id(0)
    rank = start + line
    wanted = tl.load(counts)
    if rank >= tl.load(counts + 1):
        return
    row = tl.load(order + rank)
    block = tl.arange(0, BLOCK)
    parts = tl.cdiv(columns, PART)
    partial = line.to(tl.int64) * parts
    max_shift, shifted = float("-inf"), 0
    for part in range(0, parts, BLOCK):
        at, exists = partial + part + block, part + block < parts
        shift = tl.load(shifts + at, mask=exists, other=0.0)
        shifted = tl.maximum(shifted, tl.max((shift != 0).to(tl.int32), 0))
        empty = tl.load(sums + at, mask=exists, other=0.0) == 0
        max_shift = tl.maximum(max_shift, tl.max(tl.where(empty, float("-inf"), shift), 0))
    total, product = 0.0, 0.0
    for part in range(0, parts, BLOCK):
        at, exists = partial + part + block, part + block < parts
        sums_here = tl.load(sums + at, mask=exists, other=0.0)
        below = tl.load(shifts + at, mask=exists, other=0.0) - max_shift
        term = tl.where(sums_here == 0, 0.0, tl.exp2(below) * sums_here)
        total += tl.sum(term, 0)
        if dots is not None:
            dot = tl.exp2(below) * tl.load(dots + at, mask=exists, other=0.0) + below * term
            product += tl.sum(tl.where(sums_here == 0, 0.0, dot), 0)
    log_total = tl.log2(total)
    target = tl.load(targets + rank)
    own_logprob = LN2 * ((tl.load(own + rank) - max_shift) - log_total)
    if target >= 0:  # it is one of the terms of the sum
        own_logprob = minimum(own_logprob, 0.0)
    tl.store(logprob + row, own_logprob)
    mark = tl.load(anchors + rank)
    usable = mark == mark
    anchor = tl.where(usable, mark, 0.0)
    row_lse = LN2 * ((anchor + max_shift) + log_total)
    tl.store(lse + row, row_lse)
    if dots is not None:
        tl.store(entropy + row, LN2 * (log_total - product / total))
    is_finite = tl.abs(row_lse) < float("inf")
    normalised = (shifted != 0) | ~usable
    if coefficients is not None:
        coefficient = -logit_scale * tl.exp2(tl.where(normalised, 0.0, anchor - row_lse * LOG2E))
        if temperature is not None:
            coefficient /= tl.load(temperature + row)
        tl.store(coefficients + rank, tl.where(is_finite, coefficient, float("nan")))
    if normalised:
        tl.store(anchors + rank, mark + NORMALISED)
    if shares is not None:
        target_share = at_target(
            own_logprob, row_lse, anchor, normalised, temperature, row, softcap
        )
        shares += line.to(tl.int64) * shares_stride
        stored = line < tl.minimum(shares_lines, tl.cdiv(wanted - start, ROWS) * ROWS)
        if stored & (normalised | ~is_finite):
            for first in range(0, shares_stride, BLOCK):
                column = first + block
                exists = column < shares_stride
                e = tl.load(shares + column, mask=exists, other=0.0).to(tl.float32)
                its_part = partial + tl.minimum(column // PART, parts - 1)
                shift_here = tl.load(shifts + its_part, mask=exists, other=0.0)
                share = e * tl.exp2((anchor + shift_here) - row_lse * LOG2E)
                share = tl.where(column == target, target_share, share)
                share = tl.where(is_finite, share, 0.0)
                tl.store(shares + column, share.to(shares.dtype.element_ty), mask=exists)
        elif stored:
            tl.store(shares + target, target_share.to(shares.dtype.element_ty), mask=target >= 0)


@triton.jit
def at_target(logprob, row_lse, anchor, normalised, temperature, rows, softcap):
    """What the shares of rows hold at their target: softmax less 1, in units of the row."""
    share = expm1(logprob)
    if softcap is not None:
        share *= slope_at_target(logprob + row_lse, temperature, rows, softcap)
    return share * tl.exp2(tl.where(normalised, 0.0, row_lse * LOG2E - anchor))


@triton.jit
def gradient_part(
    acc, bias, temperature, order, counts, targets, factors, anchors, coefficients, logprob, lse,
    entropy, dlogprob, dentropy, kept, kept_stride, shares, shares_stride,
    first_line, size, first, first_column, columns, logit_scale, softcap,
):  # fmt: skip
    PART: tl.constexpr = acc.shape[1]
    rank = first_line + tl.arange(0, acc.shape[0])
    exists = rank < size
    row = tl.load(order + rank, mask=exists, other=0)
    row_lse, row_logprob = tl.load(lse + row), tl.load(logprob + row)
    factor = tl.load(factors + rank, mask=exists, other=0.0)
    x = capped_tile(acc, bias, first, columns, logit_scale, softcap)
    if dentropy is None:
        anchor, usable, normalised = anchor_of(anchors, counts, rank, exists, row_lse)
        exponent = masked(tl.fma(x, factor[:, None], -anchor[:, None]), first, columns)
        shift = shift_of(tl.max(exponent, 1), usable)
        if tl.max((shift != 0).to(tl.int32), 0) != 0:
            exponent -= shift[:, None]
        share = tl.exp2(exponent)
        if softcap is not None:
            share *= slope_of_softcap(x, softcap)
        if tl.max(normalised.to(tl.int32), 0) != 0:
            e = share.to(shares.dtype.element_ty).to(tl.float32)
            e *= tl.exp2((anchor + shift) - row_lse * LOG2E)[:, None]
            share = tl.where(normalised[:, None], e, share)
        target_share = at_target(
            row_logprob, row_lse, anchor, normalised, temperature, row, softcap
        )
    else:
        exponent = masked(tl.fma(x, factor[:, None], -(row_lse * LOG2E)[:, None]), first, columns)
        g, of_entropy = tl.load(dlogprob + row), tl.load(dentropy + row)
        mean = tl.load(entropy + row)
        share = tl.exp2(exponent)
        logp = tl.where(share > 0, LN2 * exponent, 0.0)
        share *= (g + of_entropy * mean)[:, None] + of_entropy[:, None] * logp
        p_target = tl.exp(row_logprob)
        # Nothing is left of p·log p at −inf.
        target_logp = tl.where(p_target == 0, 0.0, row_logprob)
        target_share = g * expm1(row_logprob) + of_entropy * p_target * (target_logp + mean)
        if softcap is not None:
            share *= slope_of_softcap(x, softcap)
            target_share *= slope_at_target(row_logprob + row_lse, temperature, row, softcap)
    target = tl.load(targets + rank, mask=exists, other=-1) - first
    share = tl.where(tl.arange(0, PART)[None, :] == target[:, None], target_share[:, None], share)
    active = tl.load(coefficients + rank, mask=exists, other=0.0) != 0
    share = tl.where(active[:, None], share, 0.0).to(shares.dtype.element_ty)
    column = first + tl.arange(0, PART)
    local = column - first_column
    inside = exists[:, None] & (local < shares_stride)[None, :]
    if kept is not None:
        is_kept = rank < tl.load(counts + 3)
        at = kept + rank.to(tl.int64)[:, None] * kept_stride + column[None, :]
        there = is_kept[:, None] & (column < kept_stride)[None, :]
        share = tl.where(is_kept[:, None], tl.load(at, mask=inside & there, other=0.0), share)
    at = shares + rank.to(tl.int64)[:, None] * shares_stride + local[None, :]
    tl.store(at, share, mask=inside)


@launched
@triton.jit(do_not_specialize=["size", "last_column"])
def gradient_tile(
    hidden, weight, bias, temperature, order, counts, targets, factors, anchors, coefficients,
    logprob, lse, entropy, dlogprob, dentropy, kept, kept_stride, shares, shares_stride,
    first_column, last_column, size, columns, width, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, PART: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Shares of the wanted rows in columns [first_column, last_column): kept ones, others anew.

    counts[3] ranks are kept. What is made anew goes through the same roundings as what was kept;
    rows without an upstream gradient get 0. With dentropy, the upstream gradients are in the shares
    already. TMA: hidden and weight are tensor descriptors.
    """
    wanted = tl.load(counts)
    tile_rows = tl.cdiv(wanted, ROWS)
    tile_columns = tl.cdiv(last_column - first_column, COLUMNS)
    if tl.program_id(0) >= tile_rows * tile_columns:
        return
    tile_row, tile_column = gemm.tile_of(tl.program_id(0), tile_rows, tile_columns, GROUP)
    line, first = tile_row * ROWS, first_column + tile_column * COLUMNS
    rank = line + tl.arange(0, ROWS)
    active = tl.load(coefficients + rank, mask=rank < wanted, other=0.0) != 0
    if tl.max(active.to(tl.int32), 0) == 0:
        return
    all_kept = tl.minimum(line + ROWS, wanted) <= tl.load(counts + 3)
    acc = products(
        hidden, weight, line, first, size, columns, tl.where(all_kept, 0, width), width,
        ROWS, COLUMNS, STEP, EVEN, TMA,
    )  # fmt: skip
    parts = pieces(acc, PART)
    for part in tl.static_range(COLUMNS // PART):
        gradient_part(
            parts[part], bias, temperature, order, counts, targets, factors, anchors, coefficients,
            logprob, lse, entropy, dlogprob, dentropy, kept, kept_stride, shares, shares_stride,
            line, size, first + part * PART, first_column, columns, logit_scale, softcap,
        )  # fmt: skip
