"""linear_logprob and its backward pass: which rows, in what memory, in which order of kernels.

Forward: rows brought into their order → tiles of logits → a few numbers a row and tile → logprob,
entropy, lse. With a frozen head the gradient of hidden follows at once, block of rows by block of
rows. Otherwise the shares (see linear_logprob_tiles.py) of as many rows as the caller has room for
are kept, and a backward pass for which all were is two matrix products and nothing else; it changes
nothing that was kept. Where they were not, shares are made anew, all rows of some columns of the
vocabulary at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.head.linear_logprob_op import (
    KEPT_STATE,
    LINEAR_LOGPROB,
    LINEAR_LOGPROB_BACKWARD,
    TILE_COLS,
    TILE_ROWS,
    tile_row_bytes,
)
from r1kernels.head.triton.linear_logprob_gradients import bias_block, hidden_tile, weight_tile
from r1kernels.head.triton.linear_logprob_order import order_rows, ordered_row, scaled_row
from r1kernels.head.triton.linear_logprob_tiles import forward_row, forward_tile, gradient_tile
from r1kernels.triton import cdiv, descriptors, launch, plug_in

SCRATCH_BYTES = 640 << 20  # of shares that are not kept
BLOCK_ROWS = 32768  # of the forward pass: their numbers a tile are all there is at a time
KEPT_HERE = 0x7368617265736B74  # ends the buffer where these kernels have kept shares in it

# Contracting products and sums would depend on what is around them: kept or not, the same bits.
EXACT = {"enable_fp_fusion": False}
ORDER_BLOCK = {"BLOCK": 2048, "num_warps": 8}
ROW_BLOCK = {"BLOCK": 1024, "num_warps": 4}
BIAS_BLOCK = {"ROWS": 64, "COLUMNS": 128, "num_warps": 4}


class Order(NamedTuple):
    """Which row is at each rank, and how many; see linear_logprob_order.py. All on the device."""

    rows: Tensor  # [T] int32
    counts: Tensor  # [4] int32: wanted rows, valid rows, live blocks, kept rows
    # [⌈T / step⌉ + 1] int32: first ranks of the live blocks, then anything; of a backward pass
    blocks: Tensor | None

    @staticmethod
    def of(
        target: Tensor,
        keep: Tensor | None,
        ignore_index: int,
        buffer: Tensor,
        here: int,
        upstream: tuple[Tensor | None, Tensor | None] = (None, None),
        kept_rows: int = 0,
        step: int = 16,
        compact: bool = False,
    ) -> Order:
        rows = target.shape[0]
        order = target.new_empty(rows, dtype=torch.int32)
        counts = order.new_empty(4)
        blocks = None if upstream[0] is None else order.new_empty(cdiv(rows, step) + 1)
        order_rows[(1,)](
            target, keep, *upstream, order, counts, blocks, buffer, buffer.numel() - KEPT_STATE,
            rows, kept_rows, ignore_index, here, COMPACT=compact, STEP=step, **ORDER_BLOCK,
        )  # fmt: skip
        return Order(order, counts, blocks)


class Kept(NamedTuple):
    """What the private buffer begins with; it ends with KEPT_STATE bytes, of which 8 are a mark."""

    shares: Tensor  # of the first ranks: [ranks, columns in rows that begin at whole TILE_COLS]
    anchors: Tensor | None  # of all, [T] float32; None where there is no place for a row

    @staticmethod
    def of(buffer: Tensor, hidden: Tensor, weight: Tensor, used: bool) -> Kept:
        rows, size = hidden.shape[0], hidden.element_size()
        stride = cdiv(weight.shape[0], TILE_COLS) * TILE_COLS
        begin = buffer.numel() - KEPT_STATE - 16 * cdiv(rows, 4)
        ranks = min(begin // (stride * size), rows) if used and begin > 0 else 0
        shares = buffer.view(hidden.dtype).as_strided((ranks, stride), (stride, 1), 0)
        if not ranks:
            return Kept(shares, None)
        return Kept(shares, buffer.view(torch.float32)[begin // 4 : begin // 4 + rows])


def may_be_kept(entropy_grad: bool, sharded: bool) -> bool:
    """Shares are of the sum of all columns, and lack what the gradient of an entropy needs."""
    return not (entropy_grad or sharded)


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
    hidden, weight, target, bias, keep, temperature = map(
        contiguous, (hidden, weight, target, bias, keep, temperature)
    )
    (rows, width), columns = hidden.shape, weight.shape[0]
    logprob = hidden.new_empty(rows, dtype=torch.float32)
    lse = torch.empty_like(logprob)
    entropy = lse.new_empty(rows if want_entropy else 0)
    dhidden = lse.new_zeros(rows, width) if frozen_head else lse.new_empty(0, width)
    kept_bytes = kept_rows // TILE_ROWS * tile_row_bytes(hidden, weight) + KEPT_STATE
    buffer = hidden.new_empty(kept_bytes, dtype=torch.uint8)
    if not rows:
        return logprob, entropy, lse, buffer.zero_(), dhidden

    kept = Kept.of(buffer, hidden, weight, may_be_kept(entropy_grad, sharded))
    keeps = kept.anchors is not None
    order = Order.of(target, keep, ignore_index, buffer, KEPT_HERE if keeps else 0)
    factors, own = torch.empty_like(lse), torch.empty_like(lse)
    anchors = kept.anchors if keeps else torch.empty_like(lse)
    coefficients = torch.empty_like(lse) if frozen_head else None
    targets, ordered = torch.empty_like(order.rows), torch.empty_like(hidden)
    ordered_row[(rows,)](
        hidden, weight, bias, temperature, target, order.rows, order.counts, ordered, targets,
        factors, anchors, own, logprob, entropy if want_entropy else None, lse, columns, width,
        # A target that is nowhere has the logit 0 in a shard, and shows as NaN elsewhere.
        logit_scale, softcap, 0.0 if sharded else float("nan"), **ROW_BLOCK, **EXACT,
    )  # fmt: skip
    tile = logits_tile(softcap, ordered, weight)
    parts = cdiv(columns, tile["PART"])
    block, shares = rows, kept.shares
    if frozen_head:
        block, shares = frozen_block(hidden, columns)
    block = min(block, BLOCK_ROWS, rows)
    shifts = lse.new_empty(block, parts)
    sums = torch.empty_like(shifts)
    dots = torch.empty_like(shifts) if want_entropy else None
    operands = rows_times_rows(tile, ordered, weight)
    grid = programs(tile, block, columns)
    if tile["TMA"]:
        grid = (descriptors.programs(hidden.device, *grid),)
    for start in range(0, rows, block):
        size = min(block, rows - start)
        here = shares if frozen_head or start == 0 else shares[start:]
        lines, stride = here.shape
        forward_tile[grid](
            *operands, bias, order.counts, targets, factors, anchors, shifts, sums, dots, own,
            matrix(tile, here, "ROWS", "PART") if lines else None, start, size, columns, width,
            stride, lines, logit_scale, softcap, EVEN=width % tile["STEP"] == 0, **tile, **EXACT,
        )  # fmt: skip
        forward_row[(size,)](
            temperature, order.rows, order.counts, targets, anchors, shifts, sums, dots, own,
            logprob, entropy, lse, here if lines else None, coefficients, start, columns, stride,
            lines, logit_scale, softcap, ROWS=tile["ROWS"], PART=tile["PART"], **ROW_BLOCK, **EXACT,
        )  # fmt: skip
        if coefficients is not None:
            add_hidden_gradient(
                here, weight, order, coefficients, None, dhidden, start, size, True, True
            )
    return logprob, entropy, lse, buffer, dhidden


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
    dlogprob, dentropy, hidden, weight, target, bias, keep = map(
        contiguous, (dlogprob, dentropy, hidden, weight, target, bias, keep)
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

    keeping = may_be_kept(entropy_grad, sharded)
    stored, anchors = Kept.of(kept, hidden, weight, keeping)
    of_entropy = dentropy if dentropy.numel() else None
    of_weight = parameters("weight", hidden, dweight)
    order = Order.of(
        target, keep, ignore_index, kept, KEPT_HERE, (dlogprob, of_entropy), stored.shape[0],
        of_weight["STEP"], compact=not keeping,
    )  # fmt: skip
    complete = stored.shape[0] == rows  # then nothing is launched to make shares anew
    coefficients = torch.empty_like(lse)
    scaled = torch.empty_like(hidden) if need_weight else None
    scaled_row[(rows,)](
        hidden, temperature, order.rows, order.counts, anchors, lse, dlogprob, of_entropy,
        coefficients, scaled, width, logit_scale, COMPLETE=complete, **ROW_BLOCK, **EXACT,
    )  # fmt: skip
    shares, chunk = stored, columns
    if not complete:
        factors, ordered = torch.empty_like(lse), torch.empty_like(hidden)
        targets = torch.empty_like(order.rows)
        ordered_row[(rows,)](
            hidden, None, None, temperature, target, order.rows, order.counts, ordered, targets,
            factors, None, None, None, None, None, columns, width, logit_scale, softcap, 0.0,
            **ROW_BLOCK, **EXACT,
        )  # fmt: skip
        tile = logits_tile(softcap, ordered, weight)
        most = SCRATCH_BYTES // (rows * hidden.element_size()) // tile["COLUMNS"]
        chunk = min(max(most, 1), cdiv(columns, tile["COLUMNS"])) * tile["COLUMNS"]
        shares = hidden.new_empty(rows, chunk)
        operands = rows_times_rows(tile, ordered, weight)
    partial = lse.new_empty(rows, width) if need_hidden and chunk < columns else None
    for first in range(0, columns, chunk):
        last = min(first + chunk, columns)
        if not complete:
            gradient_tile[programs(tile, rows, last - first)](
                *operands, bias, temperature, order.rows, order.counts, targets, factors, anchors,
                coefficients, logprob, lse, entropy, dlogprob, of_entropy,
                stored if stored.numel() else None, stored.stride(0), shares, chunk, first, last,
                rows, columns, width, logit_scale, softcap, EVEN=width % tile["STEP"] == 0,
                **tile, **EXACT,
            )  # fmt: skip
        add_gradients(
            shares, weight, order, coefficients, scaled, of_weight, partial, dhidden, dweight,
            dbias, first, last,
        )  # fmt: skip
    return dhidden, dweight, dbias


def add_gradients(
    shares: Tensor,
    weight: Tensor,
    order: Order,
    coefficients: Tensor,
    scaled: Tensor | None,
    of_weight: dict[str, int],
    partial: Tensor | None,
    dhidden: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    first: int,
    last: int,
) -> None:
    """Of shares of the columns [first, last) of V; each gradient that has rows.

    scaled is coefficient · hidden in the order, which only dweight needs.
    """
    columns, width = weight.shape
    if dhidden.shape[0]:
        add_hidden_gradient(
            shares, weight[first:last], order, coefficients, partial, dhidden, 0,
            dhidden.shape[0], first == 0, last == columns,
        )  # fmt: skip
    if scaled is not None:
        weight_tile[programs(of_weight, last - first, width)](
            matrix(of_weight, shares, "STEP", "ROWS"),
            matrix(of_weight, scaled, "STEP", "COLUMNS"), order.counts, order.blocks,
            matrix(of_weight, dweight[first:last], "ROWS", "COLUMNS"), shares.stride(0),
            last - first, width, **of_weight,
        )  # fmt: skip
    if dbias.shape[0]:
        bias_block[(cdiv(last - first, BIAS_BLOCK["COLUMNS"]),)](
            shares, order.counts, coefficients, dbias[first:last], shares.stride(0),
            last - first, **BIAS_BLOCK, **EXACT,
        )  # fmt: skip


def add_hidden_gradient(
    shares: Tensor,
    weight: Tensor,
    order: Order,
    coefficients: Tensor,
    partial: Tensor | None,
    dhidden: Tensor,
    start: int,
    size: int,
    first: bool,
    last: bool,
) -> None:
    tile = parameters("hidden", weight, shares)
    depth, width = weight.shape
    hidden_tile[programs(tile, size, width)](
        matrix(tile, shares, "ROWS", "STEP"), matrix(tile, weight, "STEP", "COLUMNS"), order.rows,
        order.counts, coefficients, partial, dhidden, start, size, shares.stride(0), depth, width,
        FIRST=first, LAST=last, EVEN=depth % tile["STEP"] == 0, **tile,
    )  # fmt: skip


def logits_tile(softcap: float | None, *matrices: Tensor) -> dict[str, int]:
    """A softcap needs registers, which the widest tile of logits does not leave."""
    return parameters("logits" if softcap is None else "capped_logits", *matrices)


def parameters(kernel: str, *matrices: Tensor) -> dict[str, int]:
    """Of a kernel that multiplies these: by TMA where there are parameters and rows for it."""
    by_blocks = descriptors.parameters(f"linear_logprob.{kernel}_blocks", *matrices)
    if by_blocks is not None:
        return {"TMA": 1, **by_blocks}
    first = matrices[0]
    return {"TMA": 0, **launch.parameters(f"linear_logprob.{kernel}", first.device, first.dtype)}


def programs(tile: dict[str, int], rows: int, columns: int) -> tuple[int]:
    return (cdiv(rows, tile["ROWS"]) * cdiv(columns, tile["COLUMNS"]),)


def matrix(tile: dict[str, int], tensor: Tensor, rows: str, columns: str) -> Any:
    """The matrix as the kernel of ``tile`` takes it; its blocks are of these of its parameters."""
    return descriptors.blocks(tensor, tile[rows], tile[columns]) if tile["TMA"] else tensor


def rows_times_rows(tile: dict[str, int], hidden: Tensor, weight: Tensor) -> tuple[Any, Any]:
    return matrix(tile, hidden, "ROWS", "STEP"), matrix(tile, weight, "COLUMNS", "STEP")


def contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()
