"""moe_experts and its backward pass.

Forward: gate-up product and activation → down product → combine. Backward: one product makes the
gradient of the activation and all that follows from it row by row; then dx is a product and a
combine, and each weight's gradient is one product.

Descriptors load rows that lie together: there x and the upstream gradient are brought to their
experts first. The other kernels read them where they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from r1kernels.moe.experts import MOE_EXPERTS, MOE_EXPERTS_BACKWARD
from r1kernels.moe.triton.combine import moe_combine
from r1kernels.moe.triton.experts_descriptors import gate_up_tiles
from r1kernels.moe.triton.experts_rows import COLUMNS, inner_gradient
from r1kernels.moe.triton.experts_tiles import gate_up_tile, inner_gradient_tile, weights_gradient
from r1kernels.moe.triton.grouped_mm import FEW_ROWS, grouped_mm, weight_gradient
from r1kernels.moe.triton.grouped_mm_few import gate_up_few
from r1kernels.moe.triton.grouped_mm_tiles import most_tiles
from r1kernels.moe.triton.permute import moe_permute
from r1kernels.triton import cdiv, descriptors, launch, next_power_of_2, plug_in

SLOT_BLOCK = {"BLOCK": 256, "num_warps": 4}


def usable(x: Tensor, *_: Any) -> bool | str:
    return launch.absent("moe_experts.gate_up", x.device) or True


@plug_in(MOE_EXPERTS, usable)
def moe_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    offsets: Tensor,
    gather: Tensor,
    inverse: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    x, gate_up, down, offsets, gather = map(Tensor.contiguous, (x, gate_up, down, offsets, gather))
    (experts, width, depth), rows = gate_up.shape, gather.shape[0]
    inner = width // 2
    h = x.new_empty(rows if keep else 0, width)
    activation = x.new_empty(rows, inner)
    powers = next_power_of_2(experts)
    kept = h if keep else None
    sizes = (rows, experts, depth, inner)
    if rows <= FEW_ROWS and (tile := descriptors.parameters("moe_experts.gate_up_few", gate_up)):
        tiles, half = most_tiles(rows, experts, tile["ROWS"]), tile["COLUMNS"] // 2
        gate_up_few[(tiles * cdiv(inner, half),)](
            x, halves(gate_up, half, tile["STEP"]), offsets, gather, kept, activation, tiles,
            *sizes, TOP_K=inverse.shape[1], EXPERTS=powers, **tile,
        )  # fmt: skip
    elif rows > FEW_ROWS and (
        tile := descriptors.parameters("moe_experts.gate_up_blocks", gate_up, down)
    ):
        height, half, step = tile["ROWS"], tile["COLUMNS"] // 2, tile["STEP"]
        tiles = most_tiles(rows, experts, height) * cdiv(inner, half)
        gate_and_up = h.chunk(2, 1) if keep else (None, None)
        gate_up_tiles[(descriptors.programs(x.device, tiles),)](
            descriptors.blocks(moe_permute(x, gather, inverse), height, step),
            halves(gate_up, half, step),
            *(descriptors.ragged(each, height, half) for each in (*gate_and_up, activation)),
            kept, offsets, gather, *sizes, EXPERTS=powers, **tile,
        )  # fmt: skip
    else:
        tile = launch.parameters("moe_experts.gate_up", x.device, x.dtype)
        tiles = most_tiles(rows, experts, tile["ROWS"])
        gate_up_tile[(tiles * cdiv(inner, tile["COLUMNS"] // 2),)](
            x, gate_up, offsets, gather, kept, activation, tiles, *sizes, TOP_K=inverse.shape[1],
            EVEN=depth % tile["STEP"] == 0, EXPERTS=powers, **tile,
        )  # fmt: skip
    return moe_combine(grouped_mm(activation, down, offsets, False), weights, gather, inverse), h


def halves(gate_up: Tensor, columns: int, step: int) -> TensorDescriptor:
    """Blocks of as many columns of a gate and of its up."""
    experts, width, depth = gate_up.shape
    return descriptors.blocks(gate_up.view(2 * experts, width // 2, depth), 2, columns, step)


@plug_in(MOE_EXPERTS_BACKWARD, usable)
def moe_experts_backward(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    offsets: Tensor,
    gather: Tensor,
    inverse: Tensor,
    h: Tensor,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, x, gate_up, down, weights, offsets, gather, inverse, h = map(
        Tensor.contiguous, (grad, x, gate_up, down, weights, offsets, gather, inverse, h)
    )
    (experts, depth, inner), rows, top_k = down.shape, gather.shape[0], inverse.shape[1]
    dh = h.new_empty(rows, 2 * inner)
    token = None
    if descriptors.parameters("grouped_mm.product_blocks", gate_up, down) is not None:
        grad = moe_permute(grad, gather, inverse)
        x = x if frozen else moe_permute(x, gather, inverse)
        weighted = grouped_mm(grad, down, offsets, True)
        dweights = torch.zeros_like(weights)
        inner_gradient[(rows,)](
            weighted, h, weights, gather, dh, dweights, inner, WEIGHTED=not frozen, **COLUMNS
        )
    else:
        token = gather // top_k  # −1 stays −1
        tile = launch.parameters("moe_experts.inner_gradient", x.device, x.dtype)
        tiles, parts = most_tiles(rows, experts, tile["ROWS"]), cdiv(inner, tile["COLUMNS"])
        dots = weights.new_empty(parts, rows)
        weighted = None if frozen else h.new_empty(rows, inner)
        inner_gradient_tile[(tiles * parts,)](
            grad, down, weights, offsets, gather, h, dh, weighted, dots, tiles, rows, experts,
            depth, inner, TOP_K=top_k, EVEN=depth % tile["STEP"] == 0,
            EXPERTS=next_power_of_2(experts), **tile,
        )  # fmt: skip
        dweights = weights.new_empty(weights.shape)
        slots = weights.numel()
        weights_gradient[(cdiv(slots, SLOT_BLOCK["BLOCK"]),)](
            dots, inverse, dweights, slots, rows, parts, **SLOT_BLOCK
        )
    dx = moe_combine(grouped_mm(dh, gate_up, offsets, True), None, gather, inverse)
    if frozen:
        return dx, gate_up.new_empty(0), down.new_empty(0), dweights
    dgate_up = weight_gradient(dh, None, x, token, offsets)
    return dx, dgate_up, weight_gradient(grad, token, weighted, None, offsets), dweights
