"""The activation of a gate times what it lets through; backward both gradients in one pass.

A program has a stretch of the elements in their order, wherever their rows end, so that the width
wastes no lanes.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from r1kernels.elementwise.gated_activation import GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD
from r1kernels.triton import cdiv, handles, launch, plug_in
from r1kernels.triton.elementary import sigmoid, tanh
from r1kernels.triton.rows import rows_of

SQRT_2_PI = tl.constexpr(0.7978845608028654)  # √(2/π)
CUBIC = tl.constexpr(0.044715)
SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY = tl.constexpr(0.3989422804014327)  # of the normal distribution at 0


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """act(x)."""
    if ACTIVATION == "silu":
        y = x * sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(SQRT_2_PI * (x + CUBIC * x * x * x)))
    else:
        y = x * (0.5 * (1.0 + tl.erf(x * SQRT_HALF)))
    return y


@triton.jit
def activated_and_slope(x, ACTIVATION: tl.constexpr):
    """act(x) and its derivative."""
    if ACTIVATION == "silu":
        s = sigmoid(x)
        y = x * s
        slope = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "gelu_tanh":
        t = tanh(SQRT_2_PI * (x + CUBIC * x * x * x))
        half = 0.5 * (1.0 + t)
        y = x * half
        slope = half + 0.5 * x * (1.0 - t * t) * (SQRT_2_PI * (1.0 + 3.0 * CUBIC * x * x))
    else:
        below = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
        y = x * below
        slope = below + x * DENSITY * tl.exp(-0.5 * x * x)
    return y, slope


@triton.jit
def pointers(x, stride, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the elements from ``first`` on; without a WIDTH all of them lie together."""
    index = tl.arange(0, BLOCK)
    if WIDTH is None:
        x += first + index
    else:
        row = first // WIDTH
        column = (first - row * WIDTH).to(tl.int32) + index
        x += (row + column // WIDTH) * stride + column % WIDTH
    return x


@handles.launched
@triton.jit
def forward(
    y, gate, up, size, gate_stride, up_stride,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = index < size - first
    x = tl.load(pointers(gate, gate_stride, first, WIDTH, BLOCK), inside, 0.0).to(tl.float32)
    u = tl.load(pointers(up, up_stride, first, WIDTH, BLOCK), inside, 0.0).to(tl.float32)
    a = activated(x, ACTIVATION).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + first + index, a * u, inside)


@handles.launched
@triton.jit
def gradient(
    dgate, dup, dy, gate, up, size, dy_stride, gate_stride, up_stride,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = index < size - first
    g = tl.load(pointers(dy, dy_stride, first, WIDTH, BLOCK), inside, 0.0).to(tl.float32)
    x = tl.load(pointers(gate, gate_stride, first, WIDTH, BLOCK), inside, 0.0).to(tl.float32)
    u = tl.load(pointers(up, up_stride, first, WIDTH, BLOCK), inside, 0.0).to(tl.float32)
    a, slope = activated_and_slope(x, ACTIVATION)
    through = (g * u).to(dgate.dtype.element_ty).to(tl.float32)
    tl.store(dgate + first + index, through * slope, inside)
    tl.store(dup + first + index, g * a.to(dup.dtype.element_ty).to(tl.float32), inside)


def launched(kernel: Any, name: str, outputs: list[Tensor], inputs: list[Tensor], act: str) -> None:
    """One stretch a program; rows that do not lie together have strides."""
    size, width = inputs[0].numel(), inputs[0].shape[-1]
    if size == 0:
        return
    given = launch.parameters(name, inputs[0].device, inputs[0].dtype)
    rows = [rows_of(x) for x in inputs]
    together = all(x.stride(0) == width or len(x) == 1 for x in rows)
    kernel[(cdiv(size, given["BLOCK"]),)](
        *outputs, *rows, size, *(None if together else x.stride(0) for x in rows),
        act, None if together else width, **given,
    )  # fmt: skip


def able(gate: Tensor, *_: Any) -> bool | str:
    return launch.absent("gated_activation.forward", gate.device) or True


@plug_in(GATED_ACTIVATION, able)
def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    y = gate.new_empty(gate.shape)
    launched(forward, "gated_activation.forward", [y], [gate, up], activation)
    return y


@plug_in(GATED_ACTIVATION_BACKWARD, able)
def gated_activation_backward(
    dy: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    name = "gated_activation.gradient"
    launched(gradient, name, [dgate, dup], [dy, gate, up], activation)
    return dgate, dup
