"""Experts' FP8 rows back to tokens: ``moe_combine`` of what is decoded as it is read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.fp8.combine import FP8_COMBINE
from r1kernels.fp8.format import blocks
from r1kernels.fp8.triton import e4m3, e4m3_tiles
from r1kernels.moe.triton.permute import ROWS, rows_of_choices
from r1kernels.triton import cdiv, next_power_of_2, plug_in
from r1kernels.triton.build import NVIDIA, Build
from r1kernels.triton.handles import launched

GROUPS = 16  # of columns that share a scale, handled together


@launched
@triton.jit(do_not_specialize=["rows"])
def combine(
    y, data, scale, weights, inverse, rows, width, top_k,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(width, e4m3_tiles.BLOCK)
    splits = tl.cdiv(groups, GROUPS)
    token = (tl.program_id(0) // splits).to(tl.int64)
    group = tl.program_id(0) % splits * GROUPS + tl.arange(0, GROUPS)[:, None]
    column = group * e4m3_tiles.BLOCK + tl.arange(0, e4m3_tiles.BLOCK)[None, :]
    total = tl.zeros([GROUPS, e4m3_tiles.BLOCK], tl.float32)
    for first in range(0, top_k, ROWS):
        for j in tl.static_range(ROWS):
            row, there = rows_of_choices(inverse, token, first + j, top_k, rows)
            code = tl.load(data + row * width + column, (column < width) & there, 0)
            value = e4m3.decode(code)
            value *= tl.load(scale + row * groups + group, (group < groups) & there, 0.0)
            if weights is not None:
                value *= tl.load(weights + token * top_k + first + j, there, 0.0)
            total += value
    tl.store(y + token * width + column, total, column < width)


@plug_in(FP8_COMBINE)
def fp8_combine(
    data: Tensor, scale: Tensor, weights: Tensor | None, inverse: Tensor, dtype: torch.dtype
) -> Tensor:
    (tokens, top_k), (rows, width) = inverse.shape, data.shape
    y = data.new_empty(tokens, width, dtype=dtype)
    if y.numel() > 0:
        groups = min(next_power_of_2(blocks(width)), GROUPS)
        combine[(tokens * cdiv(blocks(width), groups),)](
            y, data.contiguous().view(torch.uint8), scale.contiguous(),
            None if weights is None else weights.contiguous(), inverse.contiguous(), rows, width,
            top_k, ROWS, groups,
        )  # fmt: skip
    return y


def _build(dtype: str, weights: str | None) -> Build:
    signature = {
        "y": f"*{dtype}", "data": "*u8", "scale": "*fp32", "weights": weights, "inverse": "*i32",
        "rows": "i32", "width": "i32", "top_k": "i32",
    }  # fmt: skip
    sizes = {"ROWS": ROWS, "GROUPS": GROUPS}
    wide = dict.fromkeys(NVIDIA, r"ld\.global\.v4[\s\S]*st\.global\.v4")
    return Build(combine, signature, sizes, {}, wide, aligned=("y", "data", "width"))


BUILDS = (_build("bf16", "*fp32"), _build("fp32", None))
