"""grouped_mm and the gradient of its weights: launches, for moe_experts too."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from r1kernels.moe.grouped_mm import GROUPED_MM, GROUPED_MM_BACKWARD
from r1kernels.moe.triton.grouped_mm_descriptors import product_tiles, weight_tiles
from r1kernels.moe.triton.grouped_mm_few import product_few
from r1kernels.moe.triton.grouped_mm_tiles import most_tiles, product_tile, weight_tile
from r1kernels.triton import cdiv, descriptors, launch, next_power_of_2, plug_in

FEW_ROWS = 64  # of all experts together: their products wait for the weights alone


def usable(x: Tensor, *_: Any) -> bool | str:
    return launch.absent("grouped_mm.product", x.device) or True


@plug_in(GROUPED_MM, usable)
def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> Tensor:
    x, weight, offsets = (tensor.contiguous() for tensor in (x, weight, offsets))
    (rows, depth), experts = x.shape, weight.shape[0]
    width = weight.shape[2 if transposed else 1]
    out = x.new_empty(rows, width)
    sizes = (rows, experts, depth, width)
    powers = next_power_of_2(experts)
    if rows <= FEW_ROWS and (tile := descriptors.parameters("grouped_mm.product_few", weight)):
        tiles = most_tiles(rows, experts, tile["ROWS"])
        product_few[(tiles * cdiv(width, tile["COLUMNS"]),)](
            x, weight_blocks(weight, tile, transposed), offsets, out, tiles, *sizes,
            TRANSPOSED=transposed, EXPERTS=powers, **tile,
        )  # fmt: skip
    elif rows > FEW_ROWS and (
        tile := descriptors.parameters("grouped_mm.product_blocks", x, weight, out)
    ):
        height, across = tile["ROWS"], tile["COLUMNS"]
        tiles = most_tiles(rows, experts, height) * cdiv(width, across)
        product_tiles[(descriptors.programs(x.device, tiles),)](
            descriptors.blocks(x, height, tile["STEP"]), weight_blocks(weight, tile, transposed),
            descriptors.ragged(out, height, across), offsets, out, *sizes,
            TRANSPOSED=transposed, EXPERTS=powers, **tile,
        )  # fmt: skip
    else:
        tile = launch.parameters("grouped_mm.product", x.device, x.dtype)
        tiles = most_tiles(rows, experts, tile["ROWS"])
        product_tile[(tiles * cdiv(width, tile["COLUMNS"]),)](
            x, weight, offsets, out, tiles, *sizes, TRANSPOSED=transposed,
            EVEN=depth % tile["STEP"] == 0, EXPERTS=powers, **tile,
        )  # fmt: skip
    return out


def weight_blocks(weight: Tensor, tile: dict[str, int], transposed: bool) -> TensorDescriptor:
    box = tile["COLUMNS"], tile["STEP"]
    return descriptors.blocks(weight, 1, *(reversed(box) if transposed else box))


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
    experts, height, width = offsets.shape[0] - 1, left.shape[1], right.shape[1]
    rows = (left if left_lines is None else left_lines).shape[0]
    out = left.new_empty(experts, height, width)
    tile = (
        None if gathered else descriptors.parameters("grouped_mm.weight_blocks", left, right, out)
    )
    if tile is not None:
        tall, across, step = tile["ROWS"], tile["COLUMNS"], tile["STEP"]
        tiles = experts * cdiv(height, tall) * cdiv(width, across)
        weight_tiles[(descriptors.programs(left.device, tiles),)](
            descriptors.ragged(left, step, tall),
            descriptors.ragged(right, step, across),
            descriptors.blocks(out, 1, tall, across),
            offsets, rows, experts, height, width, **tile,
        )  # fmt: skip
        return out
    tile = launch.parameters(
        "moe_experts.weight" if gathered else "grouped_mm.weight", left.device, left.dtype
    )
    grid = cdiv(height, tile["ROWS"]) * cdiv(width, tile["COLUMNS"])
    weight_tile[(grid, experts)](
        left, left_lines, right, right_lines, offsets, out, rows, height, width, **tile
    )
    return out
