"""Rows of tokens to their experts' rows: each is read once and written k times.

Padding belongs to no token: every program looks for it among some rows too, and clears it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from r1kernels.moe.permute import MOE_PERMUTE
from r1kernels.triton import cdiv, next_power_of_2, plug_in
from r1kernels.triton.build import NVIDIA, Build
from r1kernels.triton.handles import launched

BLOCK = 2048  # columns that a program handles together
ROWS = 8  # of experts, that it handles together: choices of a token, or neighbours


@triton.jit
def rows_of_choices(inverse, token, slot, top_k, rows):
    """The rows of the choices ``slot`` of a token, and which of them there are."""
    row = tl.load(inverse + token * top_k + slot, slot < top_k, -1)
    return row.to(tl.int64), (row >= 0) & (row < rows)


@triton.jit
def clear_padding(out, gather, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros in this program's share of those rows that have no slot."""
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        padding = tl.load(gather + row, row < rows, 0) < 0
        if tl.max(padding.to(tl.int32), 0) > 0:
            nothing = tl.zeros([ROWS, BLOCK], out.dtype.element_ty)
            to = out + row.to(tl.int64)[:, None] * width
            for start in range(0, width, BLOCK):
                column = start + tl.arange(0, BLOCK)[None, :]
                tl.store(to + column, nothing, padding[:, None] & (column < width))


@launched
@triton.jit(do_not_specialize=["tokens", "rows"])
def permute(
    out, x, gather, inverse, tokens, rows, width, x_stride, top_k,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    splits = tl.cdiv(width, BLOCK)
    token = (tl.program_id(0) // splits).to(tl.int64)
    if token < tokens:
        column = tl.program_id(0) % splits * BLOCK + tl.arange(0, BLOCK)[None, :]
        here = column < width
        value = tl.load(x + token * x_stride + column, here, 0.0)
        for first in range(0, top_k, ROWS):
            slot = first + tl.arange(0, ROWS)[:, None]
            row, there = rows_of_choices(inverse, token, slot, top_k, rows)
            value_of_each = tl.broadcast_to(value, [ROWS, BLOCK])
            tl.store(out + row * width + column, value_of_each, there & here)
    clear_padding(out, gather, rows, width, ROWS, BLOCK)


@plug_in(MOE_PERMUTE)
def moe_permute(x: Tensor, gather: Tensor, inverse: Tensor) -> Tensor:
    (tokens, width), rows = x.shape, gather.shape[0]
    out = x.new_empty(rows, width)
    if out.numel() > 0:
        x = x if x.stride(1) == 1 else x.contiguous()
        block = block_of(width, BLOCK)
        programs = max(tokens * cdiv(width, block), 1)
        permute[(programs,)](
            out, x, gather.contiguous(), inverse.contiguous(), tokens, rows, width, x.stride(0),
            inverse.shape[1], ROWS, block,
        )  # fmt: skip
    return out


def block_of(width: int, most: int) -> int:
    return min(next_power_of_2(width), most)


def _build(dtype: str) -> Build:
    signature = {
        "out": f"*{dtype}", "x": f"*{dtype}", "gather": "*i32", "inverse": "*i32",
        "tokens": "i32", "rows": "i32", "width": "i32", "x_stride": "i32", "top_k": "i32",
    }  # fmt: skip
    sizes = {"ROWS": ROWS, "BLOCK": BLOCK}
    wide = dict.fromkeys(NVIDIA, r"ld\.global\.v4[\s\S]*st\.global\.v4")
    return Build(permute, signature, sizes, {}, wide, aligned=("out", "x", "width", "x_stride"))


BUILDS = (_build("bf16"), _build("fp32"))
