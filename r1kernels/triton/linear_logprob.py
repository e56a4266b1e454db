"""linear_logprob and its backward pass: which rows, in what memory, in which order of kernels.

Forward: tiles of logits → a few numbers a row and tile → logprob, entropy, lse. With a frozen head
the gradient of hidden follows at once, block of rows by block of rows. Otherwise the shares (see
linear_logprob_tiles.py) of as many rows as the caller has room for are kept, and a backward pass
for which all were is two matrix products and nothing else; it changes nothing that was kept. Where
they were not, shares are made anew, all rows of some columns of the vocabulary at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.ops import head
from r1kernels.ops.linear_logprob_op import (
    KEPT_STATE,
    LINEAR_LOGPROB,
    LINEAR_LOGPROB_BACKWARD,
    TILE_COLS,
    TILE_ROWS,
    tile_row_bytes,
)
from r1kernels.triton import cdiv, launch, plug_in
from r1kernels.triton.linear_logprob_gradients import (
    bias_block,
    hidden_tile,
    scaled_row,
    weight_tile,
)
from r1kernels.triton.linear_logprob_tiles import forward_row, forward_tile, gradient_tile

SCRATCH_BYTES = 640 << 20  # of shares that are not kept
BLOCK_ROWS = 32768  # of the forward pass: their numbers a tile are all there is at a time
KEPT_HERE = 0x7368617265736B74  # ends the buffer where these kernels have kept shares in it

# Contracting products and sums would depend on what is around them: kept or not, the same bits.
EXACT = {"enable_fp_fusion": False}
ROW_BLOCK = {"BLOCK": 1024, "num_warps": 4}
BIAS_BLOCK = {"ROWS": 64, "COLUMNS": 128, "num_warps": 4}


class Order(NamedTuple):
    """Rows that want a gradient, then the other valid ones, then the ignored: all on the device."""

    rows: Tensor  # [T] int32
    counts: Tensor  # [2] int32: how many want a gradient, how many are valid
    valid: Tensor  # [T] bool

    @staticmethod
    def of(target: Tensor, keep: Tensor | None, ignore_index: int) -> Order:
        valid = head.counted(target, ignore_index)
        wanted = valid if keep is None else valid & keep
        rows = torch.argsort(2 - valid.byte() - wanted.byte(), stable=True)
        return Order(rows.int(), torch.stack((wanted.sum(), valid.sum())).int(), valid)


def kept_shares(kept: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """The buffer as [rows, columns in rows that begin at whole TILE_COLS]."""
    rows = (kept.numel() - KEPT_STATE) // tile_row_bytes(hidden, weight) * TILE_ROWS
    stride = cdiv(weight.shape[0], TILE_COLS) * TILE_COLS
    return kept[: rows * stride * hidden.element_size()].view(hidden.dtype).view(rows, stride)


def may_be_kept(entropy_grad: bool, sharded: bool) -> bool:
    """Shares are of the sum of all columns, and lack what the gradient of an entropy needs."""
    return not (entropy_grad or sharded)


def mark(kept: Tensor) -> Tensor:
    return kept[-8:].view(torch.int64)


def usable(hidden: Tensor, *_: Any) -> bool | str:
    return launch.absent("linear_logprob.logits", hidden.device) or True


@plug_in(LINEAR_LOGPROB, usable)
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
    entropy_grad: bool,
    kept_rows: int,
    frozen_head: bool,
    ignore_index: int,
    sharded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, target, bias, temperature = map(
        contiguous, (hidden, weight, target, bias, temperature)
    )
    (rows, width), columns = hidden.shape, weight.shape[0]
    logprob, lse = (hidden.new_zeros(rows, dtype=torch.float32) for _ in range(2))
    entropy = lse.new_zeros(rows if want_entropy else 0)
    dhidden = lse.new_zeros((rows if frozen_head else 0, width))
    kept_bytes = kept_rows // TILE_ROWS * tile_row_bytes(hidden, weight) + KEPT_STATE
    kept = hidden.new_empty(kept_bytes, dtype=torch.uint8)
    kept[-KEPT_STATE:] = 0  # for another backend's backward pass nothing is there
    keeps = kept_rows > 0 and may_be_kept(entropy_grad, sharded)
    if keeps:
        mark(kept).fill_(KEPT_HERE)
    if not rows:
        return logprob, entropy, lse, kept, dhidden

    order = Order.of(target, keep, ignore_index)
    # A target that is nowhere has the logit 0 in a shard, and shows as NaN elsewhere.
    own = torch.full_like(lse, 0.0 if sharded else float("nan"))
    tile = logits_tile(hidden, softcap)
    parts = cdiv(columns, tile["PART"])
    shares = None
    block, shares_rows = BLOCK_ROWS, rows
    if frozen_head:
        block, shares = frozen_block(hidden, columns)
    elif keeps:
        shares_rows = kept_rows
    block = min(block, rows)
    tops, sums = (lse.new_empty(block, parts) for _ in range(2))
    dots = lse.new_empty(block, parts) if want_entropy else None
    for start in range(0, rows, block):
        size = min(block, rows - start)
        if keeps:
            shares = kept_shares(kept, hidden, weight)[start:]
        stride = 0 if shares is None else shares.stride(0)
        forward_tile[(cdiv(size, tile["ROWS"]) * cdiv(columns, tile["COLUMNS"]),)](
            hidden, weight, bias, temperature, target, order.rows, order.counts, tops, sums, dots,
            own, shares, start, size, columns, width, stride, shares_rows, logit_scale, softcap,
            EVEN=width % tile["STEP"] == 0, **tile, **EXACT,
        )  # fmt: skip
        forward_row[(size,)](
            target, temperature, order.rows, order.counts, tops, sums, dots, own, logprob, entropy,
            lse, shares, start, columns, stride, shares_rows, softcap,
            PART=tile["PART"], **ROW_BLOCK, **EXACT,
        )  # fmt: skip
        if frozen_head:
            assert shares is not None
            count = (order.counts[:1] - start).clamp(0, size)
            lines = torch.arange(size, dtype=torch.int32, device=hidden.device)
            add_hidden_gradient(
                shares, lines, weight, order.rows[start:], count,
                coefficients(None, logit_scale, temperature, lse), None, dhidden, True, True,
            )  # fmt: skip
    return logprob, entropy, lse, kept, dhidden


def frozen_block(hidden: Tensor, columns: int) -> tuple[int, Tensor]:
    """Rows at a time, a power of two so that they fill the device evenly, and their shares."""
    stride = cdiv(columns, TILE_COLS) * TILE_COLS
    most = max(SCRATCH_BYTES // (stride * hidden.element_size()), 128)
    block = min(1 << most.bit_length() - 1, hidden.shape[0])
    return block, hidden.new_empty(block, stride)


@plug_in(LINEAR_LOGPROB_BACKWARD, lambda dlogprob, dentropy, hidden, *_: usable(hidden))
def linear_logprob_backward(
    dlogprob: Tensor,
    dentropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    logprob: Tensor,
    lse: Tensor,
    entropy: Tensor,
    kept: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    entropy_grad: bool,
    ignore_index: int,
    sharded: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dlogprob, dentropy, hidden, weight, target, bias = map(
        contiguous, (dlogprob, dentropy, hidden, weight, target, bias)
    )
    logprob, lse, entropy, kept, temperature = map(
        contiguous, (logprob, lse, entropy, kept, temperature)
    )
    (rows, width), columns = hidden.shape, weight.shape[0]
    dhidden = hidden.new_zeros(rows if need_hidden else 0, width)
    dweight = weight.new_empty(columns if need_weight else 0, width)
    dbias = weight.new_empty(columns if need_bias else 0)
    if not rows:
        return dhidden, dweight.zero_(), dbias.zero_()

    order = Order.of(target, keep, ignore_index)
    wanted = dlogprob != 0
    if dentropy.numel():
        wanted |= dentropy != 0
    wanted &= order.valid
    active, count = torch.argsort(~wanted, stable=True).int(), wanted.sum(dtype=torch.int32)
    coefficient = coefficients(
        None if dentropy.numel() else dlogprob, logit_scale, temperature, lse
    )
    places = torch.argsort(order.rows).int()
    stored = kept_shares(kept, hidden, weight)
    if not may_be_kept(entropy_grad, sharded):
        stored = stored[:0]
    have = torch.where(mark(kept) == KEPT_HERE, order.counts[0].clamp(max=stored.shape[0]), 0)

    if stored.shape[0] >= rows:
        # Nothing is launched to make shares anew. Rows without them can only come of a `keep` or
        # of a forward pass that were not these: let that show.
        coefficient = coefficient.where(places < have, float("nan"))
        shares, lines, chunk = stored, places[active], columns
    else:
        tile = logits_tile(hidden, softcap)
        most = SCRATCH_BYTES // (rows * hidden.element_size()) // tile["COLUMNS"]
        chunk = min(max(most, 1), cdiv(columns, tile["COLUMNS"])) * tile["COLUMNS"]
        shares = hidden.new_empty(rows, chunk)
        lines = torch.arange(rows, dtype=torch.int32, device=hidden.device)
    partial = lse.new_empty(rows, width) if need_hidden and chunk < columns else None
    scaled = None
    if need_weight:
        scaled = torch.empty_like(hidden)
        scaled_row[(rows,)](hidden, active, count, coefficient, scaled, width, **ROW_BLOCK)
    for first in range(0, columns, chunk):
        last = min(first + chunk, columns)
        if shares is not stored:
            gradient_tile[
                (cdiv(rows, tile["ROWS"]) * cdiv(last - first, tile["COLUMNS"]),)
            ](
                hidden, weight, bias, temperature, target, active, count, places, logprob, lse,
                entropy, dlogprob, dentropy if dentropy.numel() else None,
                stored if stored.numel() else None, stored.stride(0), have,
                shares, chunk, first, last, rows, columns, width, logit_scale, softcap,
                EVEN=width % tile["STEP"] == 0, **tile, **EXACT,
            )  # fmt: skip
        if need_hidden:
            add_hidden_gradient(
                shares, lines, weight[first:last], active, count, coefficient, partial, dhidden,
                first == 0, last == columns,
            )  # fmt: skip
        if need_weight:
            weight_gradient(shares, lines, scaled, count, dweight[first:last])
        if need_bias:
            bias_block[(cdiv(last - first, BIAS_BLOCK["COLUMNS"]),)](
                shares, lines, active, count, coefficient, dbias[first:last], shares.stride(0),
                last - first, **BIAS_BLOCK, **EXACT,
            )  # fmt: skip
    return dhidden, dweight, dbias


def logits_tile(hidden: Tensor, softcap: float | None) -> dict[str, int]:
    """A softcap needs registers, which the widest tile of logits does not leave."""
    kernel = "linear_logprob.logits" if softcap is None else "linear_logprob.capped_logits"
    return launch.parameters(kernel, hidden.device, hidden.dtype)


def contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def coefficients(
    upstream: Tensor | None, logit_scale: float, temperature: Tensor | None, like: Tensor
) -> Tensor:
    """What the shares of each row [T] are multiplied with."""
    factor = torch.full_like(like, -logit_scale) if upstream is None else -logit_scale * upstream
    return factor if temperature is None else factor / temperature


def add_hidden_gradient(
    shares: Tensor,
    lines: Tensor,
    weight: Tensor,
    active: Tensor,
    count: Tensor,
    coefficient: Tensor,
    partial: Tensor | None,
    dhidden: Tensor,
    first: bool,
    last: bool,
) -> None:
    tile = launch.parameters("linear_logprob.hidden", weight.device, weight.dtype)
    (depth, width), rows = weight.shape, lines.shape[0]
    grid = cdiv(rows, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    hidden_tile[(grid,)](
        shares, lines, weight, active, count, coefficient, partial, dhidden, shares.stride(0), rows,
        depth, width, FIRST=first, LAST=last, EVEN=depth % tile["STEP"] == 0, **tile,
    )  # fmt: skip


def weight_gradient(
    shares: Tensor, lines: Tensor, scaled: Tensor, count: Tensor, dweight: Tensor
) -> None:
    tile = launch.parameters("linear_logprob.weight", dweight.device, dweight.dtype)
    columns, width = dweight.shape
    grid = cdiv(columns, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    weight_tile[(grid,)](
        shares, lines, scaled, count, dweight, shares.stride(0), columns, width, **tile
    )
