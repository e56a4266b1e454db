"""The order in which linear_logprob takes its rows, and what each row brings along, in that order.

Rows that want a gradient come first, then the other valid ones, then the ignored: a stable
partition made on the device, whose counts never come to the host. Everything by row that a loop
over tiles needs is gathered into that order once, so that no loop follows an index. A row's number
in the order is its rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

from r1kernels.triton.elementary import LOG2E, tanh
from r1kernels.triton.handles import launched

# Above it an anchor is no whole number with room for the mark of a normalised row.
LARGEST_ANCHOR = tl.constexpr(2.0**20)
# Added to the anchor of a row whose shares are stored normalised.
NORMALISED = tl.constexpr(0.25)


@triton.jit
def has_gradient(dlogprob, dentropy, row, exists):
    active = exists & (tl.load(dlogprob + row, mask=exists, other=0.0) != 0)
    if dentropy is not None:
        active |= exists & (tl.load(dentropy + row, mask=exists, other=0.0) != 0)
    return active


@triton.jit
def classes(target, keep, dlogprob, dentropy, row, size, ignore_index, COMPACT: tl.constexpr):
    """(wanted, valid) of each row: the first class is part of the second."""
    exists = row < size
    valid = exists & (tl.load(target + row, mask=exists, other=0).to(tl.int64) != ignore_index)
    wanted = valid
    if keep is not None:
        wanted &= tl.load(keep + row, mask=exists, other=0) != 0
    if COMPACT:
        wanted &= has_gradient(dlogprob, dentropy, row, exists)
    return wanted.to(tl.int32), valid.to(tl.int32)


@launched
@triton.jit(do_not_specialize=["size", "kept_rows"])
def order_rows(
    target, keep, dlogprob, dentropy, order, counts, blocks, buffer, end, size, kept_rows,
    ignore_index, here, COMPACT: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """order [size]; counts: wanted rows, valid rows and, with dlogprob, live blocks and kept rows.

    COMPACT: rows without an upstream gradient are not wanted. blocks: the live ones' first ranks;
    STEP wanted ranks are a block, and live if a row has an upstream gradient. The last of eight
    words from ``end`` of the buffer on is ``here`` where rows are kept: written in the forward
    pass, read in the backward pass. One program: a few microseconds for each BLOCK rows.
    """
    state = tl.cast(buffer + end, tl.pointer_type(tl.int64))
    wanted, valid = 0, 0
    for start in range(0, size, BLOCK):
        row = start + tl.arange(0, BLOCK)
        first, second = classes(target, keep, dlogprob, dentropy, row, size, ignore_index, COMPACT)
        wanted += tl.sum(first, 0)
        valid += tl.sum(second, 0)
    tl.store(counts, wanted)
    tl.store(counts + 1, valid)
    wanted_before, valid_before = 0, 0
    for start in range(0, size, BLOCK):
        row = start + tl.arange(0, BLOCK)
        first, second = classes(target, keep, dlogprob, dentropy, row, size, ignore_index, COMPACT)
        firsts = wanted_before + tl.cumsum(first, 0) - first
        seconds = valid_before + tl.cumsum(second, 0) - second
        rank = tl.where(second != 0, wanted + seconds - firsts, valid + row - seconds)
        rank = tl.where(first != 0, firsts, rank)
        tl.store(order + rank, row, mask=row < size)
        wanted_before += tl.sum(first, 0)
        valid_before += tl.sum(second, 0)
    if dlogprob is None:
        word = tl.arange(0, 8)
        tl.store(state + word, tl.where(word == 7, here, 0))
    else:
        tl.debug_barrier()  # the order is read by other threads than wrote it
        live = 0
        for start in range(0, wanted, BLOCK):
            rank = start + tl.arange(0, BLOCK)
            row = tl.load(order + rank, mask=rank < wanted, other=0)
            active = has_gradient(dlogprob, dentropy, row, rank < wanted).to(tl.int32)
            alive = tl.max(tl.reshape(active, (BLOCK // STEP, STEP)), 1)
            number = live + tl.cumsum(alive, 0) - alive
            block = start + STEP * tl.arange(0, BLOCK // STEP)
            tl.store(blocks + number, block, mask=alive != 0)
            live += tl.sum(alive, 0)
        tl.store(counts + 2, live)
        is_here = tl.load(state + 7) == here
        tl.store(counts + 3, tl.where(is_here, tl.minimum(wanted, kept_rows), 0))


@triton.jit
def capped(product, bias, logit_scale, softcap):
    """The logits but for their factor: products with the bias, or the softcap of their logits."""
    x = product
    if bias is not None:
        x += bias
    if softcap is not None:
        x = softcap * tanh(x * (logit_scale / softcap))
    return x


@triton.jit
def factor_of(temperature, row, logit_scale, softcap):
    """What ``capped`` is to be multiplied with to be logits in units of log 2."""
    factor = LOG2E * (logit_scale if softcap is None else 1.0)
    if temperature is not None:
        factor = factor / tl.load(temperature + row)
    return factor


@launched
@triton.jit(do_not_specialize=["columns"])
def ordered_row(
    hidden, weight, bias, temperature, target, order, counts, ordered, targets, factors, anchors,
    own, logprob, entropy, lse, columns, width, logit_scale, softcap, absent_logit,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What the row at this rank brings along; rows that are not valid become zeros.

    ordered: its hidden. targets: its target, −1 for none in [0, columns). factors: ``factor_of``.
    With anchors also what its exponentials are relative to: the target's logit in units of log 2,
    or another one's where the target is elsewhere, rounded to a whole number; NaN where that is of
    no use. own: the target's logit less that, until the tile that has it writes it.
    """
    rank = tl.program_id(0)
    row = tl.load(order + rank)
    not_valid = rank >= tl.load(counts + 1)
    valid = ~not_valid
    target_column = tl.load(target + row)
    here = valid & (target_column >= 0) & (target_column < columns)
    tl.store(targets + rank, tl.where(here, target_column, -1).to(tl.int32))
    factor = tl.where(valid, factor_of(temperature, row, logit_scale, softcap), 0.0)
    tl.store(factors + rank, factor)
    hidden += row.to(tl.int64) * width
    ordered += rank.to(tl.int64) * width
    near = tl.where(here, target_column, 0).to(tl.int64)
    if anchors is not None:
        weight += near * width
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(hidden + column, mask=inside & valid, other=0.0)
        tl.store(ordered + column, value, mask=inside)
        if anchors is not None:
            other = tl.load(weight + column, mask=inside & valid, other=0.0)
            sums += value.to(tl.float32) * other.to(tl.float32)
    if anchors is not None:
        if bias is not None:
            offset = tl.load(bias + near).to(tl.float32)
            x = capped(tl.sum(sums, 0), offset, logit_scale, softcap)
        else:
            x = capped(tl.sum(sums, 0), None, logit_scale, softcap)
        anchor = tl.floor(tl.where(valid, x * factor, 0.0))
        usable = tl.abs(anchor) < LARGEST_ANCHOR
        if ordered.dtype.element_ty == tl.float16:  # its exponents leave no room
            usable = False
        tl.store(anchors + rank, tl.where(usable, anchor, float("nan")))
        tl.store(own + rank, absent_logit * factor - tl.where(usable, anchor, 0.0))
    if logprob is not None:
        tl.store(logprob + row, 0.0, mask=not_valid)
        tl.store(lse + row, 0.0, mask=not_valid)
        if entropy is not None:
            tl.store(entropy + row, 0.0, mask=not_valid)


@triton.jit
def anchor_of(anchors, counts, rank, exists, row_lse):
    """(anchor, is it of use, are the shares normalised); without kept anchors the log-sum-exp."""
    if anchors is None:
        return row_lse * LOG2E, row_lse == row_lse, row_lse != row_lse
    else:
        kept = tl.load(anchors + rank, mask=exists, other=0.0)
        whole = tl.floor(kept)
        usable = kept == kept
        is_here = tl.load(counts + 3) > 0
        anchor = tl.where(is_here, tl.where(usable, whole, 0.0), row_lse * LOG2E)
        return anchor, usable | ~is_here, is_here & (kept != whole)


@launched
@triton.jit
def scaled_row(
    hidden, temperature, order, counts, anchors, lse, dlogprob, dentropy, coefficients, scaled,
    width, logit_scale, COMPLETE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """coefficients: what the shares of each rank are to be multiplied with; 0 without a gradient.

    scaled: coefficient · hidden, in the order. COMPLETE: all shares were to be kept, so that a row
    without them can only come of a ``keep`` or of a forward pass that were not these, and shows as
    NaN. With dentropy, the upstream gradients are in the shares already.
    """
    rank = tl.program_id(0)
    row = tl.load(order + rank)
    active = has_gradient(dlogprob, dentropy, row, rank < tl.load(counts))
    row_lse = tl.load(lse + row)
    anchor, _, normalised = anchor_of(anchors, counts, rank, active, row_lse)
    coefficient = -logit_scale * tl.exp2(tl.where(normalised, 0.0, anchor - row_lse * LOG2E))
    if dentropy is None:
        coefficient *= tl.load(dlogprob + row)
    if temperature is not None:
        coefficient /= tl.load(temperature + row)
    lost = ~(tl.abs(row_lse) < float("inf")) | (COMPLETE & (rank >= tl.load(counts + 3)))
    coefficient = tl.where(lost, float("nan"), coefficient)
    coefficient = tl.where(active, coefficient, 0.0)
    tl.store(coefficients + rank, coefficient)
    if scaled is not None:
        hidden += row.to(tl.int64) * width
        scaled += rank.to(tl.int64) * width
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < width
            value = tl.load(hidden + column, mask=inside & active, other=0.0).to(tl.float32)
            tl.store(
                scaled + column, (coefficient * value).to(scaled.dtype.element_ty), mask=inside
            )
