"""RMSNorm over the last dimension, with the residual add before it, as the models do it."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered


@overload
def rms_norm(
    x: Tensor, weight: Tensor, residual: None = None, *,
    eps: float = ..., offset: float = ..., round_before_weight: bool = ...,
) -> Tensor: ...  # fmt: skip


@overload
def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor, *,
    eps: float = ..., offset: float = ..., round_before_weight: bool = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def rms_norm(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    offset: float = 0.0,
    round_before_weight: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = h/√(mean(h²) + eps)·(offset + weight) over the last dimension, with h = x + residual.

    Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467. The mean and the
    root are made in float32 (float64 for float64); where a result is rounded is that of the model:
    Llama, Qwen and their kin round before the weight, Gemma (offset=1) and OLMo 2 once at the end.
    The backward pass keeps h, which the model keeps anyway, and one number a row.

    Args:
        x: […, H], float32, bfloat16, float16 or float64; a last dimension of the head's size
            normalises queries and keys (Qwen3).
        weight: [H], dtype of x.
        residual: […, H] as x, added to it in its dtype; None for none.
        eps: what is added to the mean of squares, finite and above 0.
        offset: added to the weight, in float32; 1 for Gemma.
        round_before_weight: round the normalised row to the dtype of x before it is multiplied by
            the weight, as Llama does; False rounds once, after it, as Gemma does.

    Returns:
        y […, H], dtype of x; with a residual (y, h), h being what the next residual add takes.
        Gradients flow to x, weight and residual. The weight's is summed in float32, in an order
        that depends on the shape alone.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(x, weight, residual, eps, offset, round_before_weight)
    y, h, _ = RMS_NORM(x, weight, residual, eps, offset, round_before_weight)
    return y if residual is None else (y, h)


@remembered
def _check(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    offset: float,
    round_before_weight: bool,
) -> None:
    shapes = check.Shapes("rms_norm")
    rows = check.leading(x, "H")
    shapes("x", x, rows, check.FLOATS)
    shapes("weight", weight, "H", (x.dtype,))
    if residual is not None:
        shapes("residual", residual, rows, (x.dtype,))
    check.positive("rms_norm", "eps", check.number("rms_norm", "eps", eps))
    check.number("rms_norm", "offset", offset)
    check.flag("rms_norm", "round_before_weight", round_before_weight)


def _wide(tensor: Tensor) -> Tensor:
    """In the dtype of sums: float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scale(weight: Tensor, offset: float) -> Tensor:
    return _wide(weight) + offset if offset else _wide(weight)


def _normalised(h: Tensor, rstd: Tensor, round_before_weight: bool) -> Tensor:
    rows = _wide(h) * rstd.unsqueeze(-1)
    return _wide(rows.to(h.dtype)) if round_before_weight else rows


def reference(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    offset: float,
    round_before_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h = x if residual is None else (x + residual).contiguous()
    rstd = torch.rsqrt(_wide(h).pow(2).mean(-1) + eps)
    y = _normalised(h, rstd, round_before_weight) * _scale(weight, offset)
    return y.to(x.dtype).contiguous(), x.new_empty(0) if residual is None else h, rstd.contiguous()


def _fake(
    x: Tensor, weight: Tensor, residual: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape),
        x.new_empty(0 if residual is None else x.shape),
        x.new_empty(x.shape[:-1], dtype=wide),
    )


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    residual = inputs.residual
    _, h, rstd = output
    ctx.set_materialize_grads(False)  # of h there is no gradient after the last layer
    ctx.mark_non_differentiable(*((h, rstd) if residual is None else (rstd,)))
    ctx.with_residual = residual is not None
    ctx.options = inputs.offset, inputs.round_before_weight
    ctx.save_for_backward(inputs.x if residual is None else h, inputs.weight, rstd)


def _backward(ctx: Any, dy: Tensor | None, dh: Tensor | None, _: Any) -> tuple[Any, ...]:
    h, weight, rstd = ctx.saved_tensors
    if dy is None:
        return RMS_NORM.gradients(x=dh, residual=dh if ctx.with_residual else None)
    need_weight = RMS_NORM.needed(ctx).weight
    dx, dweight = RMS_NORM_BACKWARD(dy, dh, h, weight, rstd, *ctx.options, need_weight)
    return RMS_NORM.gradients(
        x=dx,
        weight=dweight if need_weight else None,
        residual=dx if ctx.with_residual else None,
    )


def backward_reference(
    dy: Tensor,
    dh: Tensor | None,
    h: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,
    round_before_weight: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """dx = dh + (g − n·mean(g·n))·rstd with n = h·rstd and g = dy·(offset + weight).

    Rounded where autograd rounds it: g if the forward pass rounded n, and dx before dh is added.
    """
    n = _normalised(h, rstd, False)
    g = _wide(dy) * _scale(weight, offset)
    if round_before_weight:
        g = _wide(g.to(h.dtype))
    dx = ((g - n * (g * n).mean(-1, keepdim=True)) * rstd.unsqueeze(-1)).to(h.dtype)
    if dh is not None:
        dx = dx + dh
    dweight = weight.new_empty(0)
    if need_weight:
        products = _wide(dy) * _normalised(h, rstd, round_before_weight)
        dweight = products.reshape(rstd.numel(), len(weight)).sum(0).to(weight.dtype)
    return dx.contiguous(), dweight


def _backward_fake(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor, offset: float,
    round_before_weight: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return h.new_empty(h.shape), weight.new_empty(weight.shape if need_weight else 0)


def _case(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, *,
    residual: bool = False, offset: float = 0.0, round_before_weight: bool = True,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    size = torch.Size(shape).numel()

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(size)
        x, added = torch.randn(2, *shape, generator=rng).to(device, dtype)
        weight = torch.randn(shape[-1], generator=rng).mul_(0.3).add_(1 - offset)
        weight = weight.to(device, dtype)
        return x, weight, added if residual else None, 1e-6, offset, round_before_weight

    moved = float(dtype.itemsize * size * (4 if residual else 2))
    return Case(name, make, flops=4.0 * size, bytes=moved, bench=bench)


GEMMA: dict[str, Any] = {"offset": 1.0, "round_before_weight": False}
CASES = (
    _case("bf16", (37, 256)),
    _case("fp32, residual", (21, 192), torch.float32, residual=True),
    _case("bf16, residual, odd width", (3, 11, 141), residual=True),
    _case("Gemma, residual", (2, 19, 320), residual=True, **GEMMA),
    _case("Gemma, fp32, odd width", (33, 67), torch.float32, **GEMMA),
    _case("OLMo", (9, 96), round_before_weight=False),
    _case("fp16", (9, 96), torch.float16, residual=True),
    _case("heads", (2, 7, 5, 64)),
    _case("one row", (1, 2048), residual=True),
    _case("one vector", (100,)),
    _case("no rows", (0, 64), residual=True),
    _case("T 4096, H 2048", (4096, 2048), bench="cpu"),
    _case("T 4096, H 2048, residual", (4096, 2048), residual=True, bench="cpu"),
    _case("T 4096, H 2048, residual, fp32", (4096, 2048), torch.float32, residual=True,
          bench="cpu"),
    _case("T 16384, H 4096", (16384, 4096), bench="cuda"),
    _case("T 16384, H 4096, residual", (16384, 4096), residual=True, bench="cuda"),
    _case("T 16384, 16 heads of 128", (16384, 16, 128), bench="cuda"),
)  # fmt: skip


def _backward_case(case: Case, need_weight: bool = True) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        a = RMS_NORM.bind(case.make(device))
        _, h, rstd = reference(*a)
        rng = torch.Generator().manual_seed(1)
        dy, dh = torch.randn(2, *a.x.shape, generator=rng).to(a.x)
        if a.residual is None:
            dh, h = None, a.x
        return dy, dh, h, a.weight, rstd, a.offset, a.round_before_weight, need_weight

    name = case.name + ("" if need_weight else ", frozen weight")
    return Case(name, make, flops=3 * case.flops, bytes=1.5 * case.bytes, bench=case.bench)


RMS_NORM = Op(
    "rms_norm(Tensor x, Tensor weight, Tensor? residual, float eps, float offset, "
    "bool round_before_weight) -> (Tensor y, Tensor h, Tensor rstd)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=CASES,
    triton="r1kernels.elementwise.triton.rms_norm",
)
RMS_NORM_BACKWARD = Op(
    "rms_norm_backward(Tensor dy, Tensor? dh, Tensor h, Tensor weight, Tensor rstd, float offset, "
    "bool round_before_weight, bool need_weight) -> (Tensor dx, Tensor dweight)",
    reference=backward_reference,
    fake=_backward_fake,
    cases=(
        *(_backward_case(case) for case in CASES),
        _backward_case(CASES[0], need_weight=False),
        _backward_case(_case("many rows", (600, 48), residual=True)),
    ),
    triton="r1kernels.elementwise.triton.rms_norm",
)
