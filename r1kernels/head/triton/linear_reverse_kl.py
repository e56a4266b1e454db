"""linear_reverse_kl and its backward pass: in what memory, in which order of kernels.

Forward: tiles of both heads' logits → a few numbers a row and tile → the results of a row, as many
rows at a time as these numbers have room for. Backward: for some columns of the vocabulary at a
time, shares of all rows, then the products of linear_logprob with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1kernels.head.linear_reverse_kl import (
    LINEAR_REVERSE_KL,
    LINEAR_REVERSE_KL_BACKWARD,
    nothing_kept,
)
from r1kernels.head.triton.linear_logprob import (
    EXACT,
    ROW_BLOCK,
    SCRATCH_BYTES,
    Order,
    add_gradients,
    contiguous,
    parameters,
    programs,
)
from r1kernels.head.triton.linear_reverse_kl_tiles import (
    PARTS,
    Side,
    forward_row,
    forward_tile,
    gradient_tile,
)
from r1kernels.triton import cdiv, launch, plug_in


def usable(hidden: Tensor, *_: object) -> bool | str:
    return launch.absent("linear_reverse_kl.logits", hidden.device) or True


def side(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float, softcap: float | None
) -> Side:
    hidden, weight, bias = map(contiguous, (hidden, weight, bias))
    return Side(hidden, weight, bias, hidden.shape[1], logit_scale, softcap)


def logits_tile(student: Side, teacher: Side) -> dict[str, int]:
    """Of the wider dtype of the two, whose steps have room for both."""
    wider = max(student.hidden, teacher.hidden, key=Tensor.element_size)
    return launch.parameters("linear_reverse_kl.logits", wider.device, wider.dtype)


@plug_in(LINEAR_REVERSE_KL, usable)
def linear_reverse_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    teacher_logit_scale: float,
    teacher_softcap: float | None,
    kept_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns = hidden.shape[0], weight.shape[0]
    kl, entropy, lse, teacher_lse = (hidden.new_empty(rows, dtype=torch.float32) for _ in range(4))
    kept = nothing_kept(hidden, weight, kept_rows)
    if not rows:
        return kl, entropy, lse, teacher_lse, kept
    student = side(hidden, weight, bias, logit_scale, softcap)
    teacher = side(
        teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale, teacher_softcap
    )
    temperature, tile = contiguous(temperature), logits_tile(student, teacher)
    tiles = cdiv(columns, tile["COLUMNS"])
    block = min(rows, max(SCRATCH_BYTES // (4 * PARTS * tiles), tile["ROWS"]))
    parts = kl.new_empty(PARTS, block, tiles)
    for start in range(0, rows, block):
        size = min(block, rows - start)
        forward_tile[programs(tile, size, columns)](
            student, teacher, temperature, parts, start, size, rows, columns, **tile, **EXACT
        )
        forward_row[(size,)](
            parts, kl, entropy, lse, teacher_lse, start, size, tiles, **ROW_BLOCK, **EXACT
        )
    return kl, entropy, lse, teacher_lse, kept


@plug_in(LINEAR_REVERSE_KL_BACKWARD, usable)
def linear_reverse_kl_backward(
    dkl: Tensor,
    kl: Tensor,
    lse: Tensor,
    teacher_lse: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    teacher_logit_scale: float,
    teacher_softcap: float | None,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (rows, width), columns = hidden.shape, weight.shape[0]
    dhidden = hidden.new_zeros(rows if need_hidden else 0, width)
    dweight = weight.new_empty(columns if need_weight else 0, width)
    dbias = weight.new_empty(columns if need_bias else 0)
    if not rows:
        return dhidden, dweight.zero_(), dbias.zero_()
    student = side(hidden, weight, bias, logit_scale, softcap)
    teacher = side(
        teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale, teacher_softcap
    )
    kl, lse, teacher_lse, temperature = map(contiguous, (kl, lse, teacher_lse, temperature))
    coefficients = (dkl if temperature is None else dkl / temperature) * logit_scale
    scaled = None
    if need_weight:
        scaled = coefficients[:, None] * student.hidden
        scaled = scaled.masked_fill_(coefficients[:, None] == 0, 0).to(hidden.dtype)
    tile, of_weight = logits_tile(student, teacher), parameters("weight", student.hidden, dweight)
    most = SCRATCH_BYTES // (rows * hidden.element_size()) // tile["COLUMNS"]
    chunk = min(max(most, 1), cdiv(columns, tile["COLUMNS"])) * tile["COLUMNS"]
    shares = hidden.new_empty(rows, chunk)
    partial = lse.new_empty(rows, width) if need_hidden and chunk < columns else None
    order = as_they_lie(lse, of_weight["STEP"])
    for first in range(0, columns, chunk):
        last = min(first + chunk, columns)
        gradient_tile[programs(tile, rows, last - first)](
            student, teacher, temperature, kl, lse, teacher_lse, coefficients, shares, chunk,
            first, last, rows, columns, **tile, **EXACT,
        )  # fmt: skip
        add_gradients(
            shares, student.weight, order, coefficients, scaled, of_weight, partial, dhidden,
            dweight, dbias, first, last,
        )  # fmt: skip
    return dhidden, dweight, dbias


def as_they_lie(like: Tensor, step: int) -> Order:
    """All rows, each at its own rank, in blocks of ``step``."""
    rows = like.shape[0]
    ranks = torch.arange(rows + 1, dtype=torch.int32, device=like.device)
    blocks = torch.arange(0, rows + 2 * step, step, dtype=torch.int32, device=like.device)
    counts = torch.full((4,), rows, dtype=torch.int32, device=like.device)
    counts[2:3].fill_(cdiv(rows, step))
    return Order(ranks, counts, blocks)
