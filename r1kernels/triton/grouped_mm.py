"""grouped_mm and the gradient of its weights: launches, for moe_experts too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from r1kernels.ops.grouped_mm import GROUPED_MM, GROUPED_MM_BACKWARD
from r1kernels.triton import cdiv, launch, next_power_of_2, plug_in
from r1kernels.triton.grouped_mm_tiles import most_tiles, product_tile, weight_tile


def usable(x: Tensor, *_: Any) -> bool | str:
    return launch.absent("grouped_mm.product", x.device) or True


@plug_in(GROUPED_MM, usable)
def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> Tensor:
    x, weight, offsets = (tensor.contiguous() for tensor in (x, weight, offsets))
    (rows, depth), experts = x.shape, weight.shape[0]
    width = weight.shape[2 if transposed else 1]
    out = x.new_empty(rows, width)
    tile = launch.parameters("grouped_mm.product", x.device, x.dtype)
    tiles = most_tiles(rows, experts, tile["ROWS"])
    product_tile[(tiles * cdiv(width, tile["COLUMNS"]),)](
        x, weight, offsets, out, tiles, rows, experts, depth, width, TRANSPOSED=transposed,
        EVEN=depth % tile["STEP"] == 0, EXPERTS=next_power_of_2(experts), **tile,
    )  # fmt: skip
    return out


@plug_in(GROUPED_MM_BACKWARD, usable)
def grouped_mm_backward(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    return weight_gradient(left, None, right, None, offsets)


def weight_gradient(
    left: Tensor,
    left_lines: Tensor | None,
    right: Tensor,
    right_lines: Tensor | None,
    offsets: Tensor,
) -> Tensor:
    """leftᵀ · right of each expert's rows; of a side with lines, row i is line lines[i], or 0."""
    left, right, offsets = (tensor.contiguous() for tensor in (left, right, offsets))
    gathered = left_lines is not None or right_lines is not None
    tile = launch.parameters(
        "moe_experts.weight" if gathered else "grouped_mm.weight", left.device, left.dtype
    )
    experts, height, width = offsets.shape[0] - 1, left.shape[1], right.shape[1]
    rows = (left if left_lines is None else left_lines).shape[0]
    out = left.new_empty(experts, height, width)
    grid = cdiv(height, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    weight_tile[(grid, experts)](
        left, left_lines, right, right_lines, offsets, out, rows, height, width, **tile
    )
    return out
