"""A linear layer whose three products are FP8: forward, and the gradients of input and weight.

The recipe is DeepSeek-V3's (arXiv 2412.19437, 3.3): activations and their gradients in blocks of
(1, 128) along whatever a product sums over, weights in blocks of (128, 128), which serve both the
forward product and the input's gradient as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from r1kernels.core import autocast, check
from r1kernels.core.once import inputs_of, once
from r1kernels.fp8.format import (
    BLOCK,
    E4M3,
    SCALE_FORMATS,
    FP8Tensor,
    check_scale,
    check_tensor,
)
from r1kernels.fp8.gemm import FP8_GEMM
from r1kernels.fp8.linear_forward import FP8_LINEAR_FORWARD
from r1kernels.fp8.quantize import FP8_QUANTIZE, SOURCES

# Of arguments that passed all checks: in generation these would take longer than the product.
_RIGHT: set[tuple[Any, ...]] = set()


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    quantized: FP8Tensor,
    bias: Tensor | None = None,
    *,
    scale_format: str = "float",
) -> Tensor:
    """x·weightᵀ + bias, with FP8 products in the forward and in the backward pass.

    For the backward pass x is kept in FP8, one byte an element, and not at all if ``weight`` needs
    no gradient.

    Args:
        x: [..., K], float32, bfloat16 or float16.
        weight: [N, K]: where the gradient of the weight goes. It is not read: float32, bfloat16 or
            float16 that ``quantized`` was made from, or the codes themselves, an e4m3 parameter
            with ``grad_dtype = torch.float32``.
        quantized: the weight that is read: data [N, K], and scale [⌈N/128⌉, ⌈K/128⌉] or [1, 1], as
            ``fp8_quantize(weight, block=(128, 128))`` gives it. If it has ``data_t``, the codes of
            the transposed weight [K, N], x's gradient is made from these: a product on Hopper
            takes what it sums over contiguous, and would transpose the codes at every call.
        bias: [N], float32, bfloat16 or float16; added in x's dtype.
        scale_format: of x and of the gradient of the result, see ``fp8_quantize``.

    Returns:
        [..., N], dtype of x; under autocast in its dtype. Gradients flow to x, weight (in its
        dtype, float32 for e4m3) and bias.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    (x,) = autocast.cast(x)
    kinds = _kinds(x, weight, quantized, bias, scale_format)
    if kinds is None or kinds not in _RIGHT:
        _check(x, weight, quantized, bias, scale_format)
        if kinds is not None:
            _RIGHT.add(kinds)
    rows = _rows(x)
    trained = weight.requires_grad and torch.is_grad_enabled()
    data, scale = quantized.constants
    if trained or (torch.is_grad_enabled() and (rows.requires_grad or _trained(bias))):
        y = _Linear.apply(
            rows, weight, data, scale, _of_columns(quantized), bias, scale_format, trained
        )
    else:
        y, _, _ = _forward(rows, data, scale, bias, scale_format, trained)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(0, -2) if x.dim() > 2 else x[None]


def _kinds(
    x: Any, weight: Any, quantized: Any, bias: Any, scale_format: Any
) -> tuple[Any, ...] | None:
    """All that the checks look at, or None where that is more than is worth to remember."""
    hashable = type(quantized) is FP8Tensor and type(scale_format) is str
    if torch.compiler.is_compiling() or not hashable:
        return None
    kinds: list[Any] = [scale_format]
    for tensor in (x, weight, quantized.data, quantized.scale, bias):
        if tensor is None:
            kinds.append(None)
        elif type(tensor) is Tensor or type(tensor) is Parameter:
            shape = tensor.shape if tensor is not x else (tensor.shape[-1:], tensor.dim() > 0)
            kinds += (shape, tensor.dtype, tensor.device, tensor.layout)
        else:
            return None
    return None if weight is None or weight.dtype == E4M3 else tuple(kinds)


def _check(x: Any, weight: Any, quantized: Any, bias: Any, scale_format: Any) -> None:
    op = "fp8_linear"
    if not isinstance(x, Tensor) or not x.dim():
        raise (ValueError if isinstance(x, Tensor) else TypeError)(
            f"{op}: x: expected shape [..., K], got {check.described(x)}"
        )
    shapes = check.Shapes(op)
    shapes("x", _rows(x), "M K", SOURCES)
    check_weight(shapes, "weight", weight, quantized, "N K")
    if bias is not None:
        shapes("bias", bias, "N", SOURCES)
    check.choice(op, "scale_format", scale_format, SCALE_FORMATS)


def check_weight(
    shapes: check.Shapes, name: str, weight: Tensor, quantized: FP8Tensor, dims: str
) -> None:
    """``weight`` can take the gradient of ``quantized``, a weight whose scale serves both passes.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    op = shapes.op
    codes = "quantized" if name == "weight" else f"{name}_quantized"
    check_tensor(op, codes, quantized)
    shapes(name, weight, dims, (*SOURCES, E4M3))
    shapes(f"{codes}.data", quantized.data, dims, (E4M3,))
    check_scale(op, f"{codes}.scale", quantized.scale, tuple(quantized.data.shape), None)
    if weight.dtype == E4M3 and weight.requires_grad and not torch.compiler.is_compiling():
        # Autograd would round the gradient to codes without a scale, most of it to 0.
        taken = weight.grad_dtype if weight.is_leaf else E4M3
        if taken not in (torch.float32, None):
            raise TypeError(
                f"{op}: {name}: expected grad_dtype float32 of an e4m3 parameter that is trained, "
                f"got {str(taken).removeprefix('torch.')} ({name}.grad_dtype = torch.float32)"
            )


def gradient_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if weight_dtype == E4M3 else weight_dtype


def _of_columns(quantized: FP8Tensor) -> Tensor | None:
    """The codes of wᵀ [K, N], where they are known."""
    known = quantized.data_t
    return known if known is not None and known.shape == quantized.data.shape[::-1] else None


def _trained(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _forward(
    x: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, scale_format: str, trained: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The result, and the transposed codes and scales of x, empty or None unless ``trained``."""
    # The ops themselves: a token at a time, checking anew what was checked costs as much as mm.
    added = None if bias is None else bias.to(x.dtype)
    power_of_two = scale_format == "ue8m0"
    y, *x_t = FP8_LINEAR_FORWARD(x, data, scale, added, power_of_two, trained)
    return y, *(x_t if trained else (None, None))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, data: Tensor, scale: Tensor, data_t: Tensor | None,
        bias: Tensor | None, scale_format: str, trained: bool,
    ) -> Tensor:  # fmt: skip
        y, x_t, x_scale_t = _forward(x, data, scale, bias, scale_format, trained)
        ctx.inputs = inputs_of((x, weight, bias))
        ctx.save_for_backward(x_t, x_scale_t, data, scale, data_t)
        ctx.scale_format, ctx.x_dtype, ctx.weight_dtype = scale_format, x.dtype, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once("fp8_linear")
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x_t, x_scale_t, data, scale, data_t = ctx.saved_tensors
        of_x, of_weight, _, _, _, of_bias, _, _ = ctx.needs_input_grad
        dx = dweight = dbias = None
        power_of_two = ctx.scale_format == "ue8m0"
        if of_x or of_weight:
            quantized = FP8_QUANTIZE(dy, None, 1, 1, BLOCK, power_of_two, of_weight)
            dy_data, dy_scale, dy_t, dy_scale_t = quantized
        if of_x and data_t is None:
            dx = FP8_GEMM(dy_data, dy_scale, data, scale, None, ctx.x_dtype, True)
        elif of_x:
            dx = FP8_GEMM(dy_data, dy_scale, data_t, scale.T, None, ctx.x_dtype, False)
        if of_weight:
            dtype = gradient_dtype(ctx.weight_dtype)
            dweight = FP8_GEMM(dy_t, dy_scale_t, x_t, x_scale_t, None, dtype, False)
        if of_bias:
            dbias = dy.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return dx, dweight, None, None, None, dbias, None, None
