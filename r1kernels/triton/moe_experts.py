"""moe_experts and its backward pass: no row of x or of a gradient is copied to its expert.

Forward: gate-up product and activation → down product → combine. Backward: one product makes the
gradient of the activation and all that follows from it row by row; then dx is a product and a
combine, and each weight's gradient is one product.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from r1kernels.ops.moe_combine import MOE_COMBINE
from r1kernels.ops.moe_experts import MOE_EXPERTS, MOE_EXPERTS_BACKWARD
from r1kernels.triton import cdiv, launch, next_power_of_2, plug_in
from r1kernels.triton.grouped_mm import grouped_mm, weight_gradient
from r1kernels.triton.grouped_mm_tiles import most_tiles
from r1kernels.triton.moe_experts_tiles import gate_up_tile, inner_gradient_tile, weights_gradient

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
    tile = launch.parameters("moe_experts.gate_up", x.device, x.dtype)
    tiles = most_tiles(rows, experts, tile["ROWS"])
    gate_up_tile[(tiles * cdiv(inner, tile["COLUMNS"] // 2),)](
        x, gate_up, offsets, gather, h if keep else None, activation, tiles, rows, experts, depth,
        inner, TOP_K=inverse.shape[1], EVEN=depth % tile["STEP"] == 0,
        EXPERTS=next_power_of_2(experts), **tile,
    )  # fmt: skip
    out = grouped_mm(activation, down, offsets, False)
    return MOE_COMBINE(out, weights, gather, inverse), h


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
    tile = launch.parameters("moe_experts.inner_gradient", x.device, x.dtype)
    tiles, parts = most_tiles(rows, experts, tile["ROWS"]), cdiv(inner, tile["COLUMNS"])
    dh, dots = h.new_empty(rows, 2 * inner), weights.new_empty(parts, rows)
    weighted = None if frozen else h.new_empty(rows, inner)
    inner_gradient_tile[(tiles * parts,)](
        grad, down, weights, offsets, gather, h, dh, weighted, dots, tiles, rows, experts, depth,
        inner, TOP_K=top_k, EVEN=depth % tile["STEP"] == 0,
        EXPERTS=next_power_of_2(experts), **tile,
    )  # fmt: skip
    dweights = weights.new_empty(weights.shape)
    slots = weights.numel()
    weights_gradient[(cdiv(slots, SLOT_BLOCK["BLOCK"]),)](
        dots, inverse, dweights, slots, rows, parts, **SLOT_BLOCK
    )
    dx = MOE_COMBINE(grouped_mm(dh, gate_up, offsets, True), None, gather, inverse)
    if frozen:
        return dx, gate_up.new_empty(0), down.new_empty(0), dweights
    token = gather // top_k  # −1 stays −1
    dgate_up = weight_gradient(dh, None, x, token, offsets)
    return dx, dgate_up, weight_gradient(grad, token, weighted, None, offsets), dweights
