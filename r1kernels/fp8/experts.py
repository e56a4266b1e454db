"""The experts of a layer with FP8 products: ``moe_experts`` as ``fp8_linear`` computes.

Rows are gathered, quantized and transposed in one pass; the activation leaves its kernel quantized.
Kept for the backward pass are the gathered rows in FP8 and the gate-up product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.once import inputs_of, once
from r1kernels.fp8 import quantize
from r1kernels.fp8.format import BLOCK, SCALE_FORMATS, FP8Tensor
from r1kernels.fp8.grouped_gemm import fp8_grouped_gemm
from r1kernels.fp8.grouped_wgrad import fp8_grouped_wgrad
from r1kernels.fp8.linear import check_weight, gradient_dtype
from r1kernels.fp8.swiglu import fp8_swiglu, fp8_swiglu_backward
from r1kernels.moe.combine import moe_combine
from r1kernels.moe.route import Routing, check_routing
from r1kernels.moe.sort import padded_rows


def fp8_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_quantized: FP8Tensor,
    down_quantized: FP8Tensor,
    routing: Routing,
    *,
    scale_format: str = "float",
) -> Tensor:
    """y[t] = Σ_j w[t, j]·down_e(silu(gate_e(x[t]))·up_e(x[t])) with e = ids[t, j].

    Args:
        x: [T, H], float32, bfloat16 or float16.
        gate_up: [E, 2I, H], gate first, and
        down: [E, H, I]: where the gradients go, as ``weight`` of ``fp8_linear``.
        gate_up_quantized, down_quantized: the weights that are read, with a scale for each block
            of (128, 128) or one for each expert.
        routing: of ``moe_route``, or ``Routing.of(weights, ids, E)``. With ``align=128`` it is used
            as it is; else its ids are sorted again where the kernels need that: on a GPU, and for
            the gradients of the weights.
        scale_format: of activations and gradients, see ``fp8_quantize``.

    Returns:
        [T, H], dtype of x; under autocast in its dtype. Gradients flow to x, gate_up, down (in
        their dtype, float32 for e4m3) and routing.weights.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    op = "fp8_experts"
    (x,) = autocast.cast(x)
    shapes = check.Shapes(op)
    shapes("x", x, "T H", quantize.SOURCES)
    check_weight(shapes, "gate_up", gate_up, gate_up_quantized, "E U H")
    check_weight(shapes, "down", down, down_quantized, "E H I")
    experts, width, inner = (shapes.sizes[name] for name in "EUI")
    if width != 2 * inner:
        raise ValueError(f"{op}: gate_up: expected 2·I = {2 * inner} rows an expert, got {width}")
    check.choice(op, "scale_format", scale_format, SCALE_FORMATS)
    check_routing(op, routing)
    shapes("routing.weights", routing.weights, "T k", (torch.float32,))
    shapes("routing.ids", routing.ids, "T k", check.INTS)
    trained = (gate_up.requires_grad or down.requires_grad) and torch.is_grad_enabled()
    if routing.offsets is not None and routing.offsets.shape != (experts + 1,):
        raise ValueError(
            f"{op}: routing: expected one of E = {experts} experts, "
            f"got {routing.offsets.shape[0] - 1}"
        )
    if routing.offsets is None or ((trained or x.is_cuda) and not in_blocks(routing, experts)):
        routing = Routing.of(routing.weights, routing.ids, experts, align=BLOCK)
    weights, _, *order = routing
    codes = (*gate_up_quantized.constants, *down_quantized.constants)
    return _Experts.apply(x, gate_up, down, weights, *codes, *order, scale_format, trained)


def in_blocks(routing: Routing, experts: int) -> bool:
    """The routing was sorted with ``align=128``, by its number of rows: nobody asks the device.

    Of two experts and more that number tells; the rows of one may be as many without.
    """
    rows = padded_rows(routing.ids.numel(), experts, BLOCK)
    return experts > 1 and routing.gather.shape[0] == rows


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor,
        gate_up_data: Tensor, gate_up_scale: Tensor, down_data: Tensor, down_scale: Tensor,
        counts: Tensor, offsets: Tensor, gather: Tensor, inverse: Tensor,
        scale_format: str, trained: bool,
    ) -> Tensor:  # fmt: skip
        ctx.inputs = inputs_of((x, gate_up, down, weights))
        rows_of: dict[str, Any] = {"offsets": offsets, "counts": counts, "out_dtype": x.dtype}
        xq = quantize.fp8_quantize(
            x, scale_format=scale_format, both=trained, gather=gather, top_k=inverse.shape[1]
        )
        h = fp8_grouped_gemm(xq, FP8Tensor(gate_up_data, gate_up_scale), **rows_of)
        a = fp8_swiglu(h, scale_format=scale_format)
        rows = fp8_grouped_gemm(a, FP8Tensor(down_data, down_scale), **rows_of)
        ctx.save_for_backward(
            xq.data_t, xq.scale_t, h, weights, gate_up_data, gate_up_scale, down_data, down_scale,
            counts, offsets, gather, inverse,
        )  # fmt: skip
        ctx.scale_format, ctx.trained, ctx.x_dtype = scale_format, trained, x.dtype
        ctx.gate_up_dtype, ctx.down_dtype = gate_up.dtype, down.dtype
        return moe_combine(rows, weights, gather, inverse)

    @staticmethod
    @once("fp8_experts")
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (
            x_t, x_scale_t, h, weights, gate_up_data, gate_up_scale, down_data, down_scale,
            counts, offsets, gather, inverse,
        ) = ctx.saved_tensors  # fmt: skip
        of_x, of_gate_up, of_down, of_weights, *_ = ctx.needs_input_grad
        rows_of: dict[str, Any] = {"offsets": offsets, "counts": counts, "out_dtype": ctx.x_dtype}
        dyq = quantize.fp8_quantize(
            dy, scale_format=ctx.scale_format, both=of_down, gather=gather, top_k=inverse.shape[1]
        )
        da = fp8_grouped_gemm(dyq, FP8Tensor(down_data, down_scale), transposed=True, **rows_of)
        dh, a, dw = fp8_swiglu_backward(
            h, da, of_rows(weights, gather), scale_format=ctx.scale_format, frozen=not ctx.trained
        )
        dx = dgate_up = ddown = dweights = None
        if of_x:
            gate_up = FP8Tensor(gate_up_data, gate_up_scale)
            drows = fp8_grouped_gemm(dh, gate_up, transposed=True, **rows_of)
            dx = moe_combine(drows, None, gather, inverse)
        if of_gate_up:
            dgate_up = fp8_grouped_wgrad(dh.transposed, FP8Tensor(x_t, x_scale_t), offsets).to(
                gradient_dtype(ctx.gate_up_dtype)
            )
        if of_down:
            ddown = fp8_grouped_wgrad(dyq.transposed, a, offsets).to(gradient_dtype(ctx.down_dtype))
        if of_weights:
            dweights = of_slots(dw, inverse)
        return dx, dgate_up, ddown, dweights, *(None,) * 10


def of_rows(weights: Tensor, gather: Tensor) -> Tensor:
    """[P]: the weight [T, k] of each row's slot, 0 at padding."""
    if not weights.numel():
        return weights.new_zeros(gather.shape[0])
    return weights.flatten()[gather.clamp(min=0)].masked_fill(gather < 0, 0)


def of_slots(dw: Tensor, inverse: Tensor) -> Tensor:
    """[T, k]: the gradient [P] of each slot's row, 0 where a slot has none."""
    if not dw.numel():
        return dw.new_zeros(inverse.shape)
    return dw[inverse.clamp(min=0)].where(inverse >= 0, 0)
