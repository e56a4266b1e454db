"""The experts of a layer, from tokens to tokens: gate-up product, SwiGLU, down product, weights.

Of a row's way through its expert only the gate-up product is kept for the backward pass. The rest
is made again: the activation, and the weights' gradient as ⟨dy·W_down, activation⟩ instead of
⟨dy, row⟩, so no row of the down product is kept or made twice (as in SonicMoE, arXiv 2512.14080).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.moe import combine, permute, sort
from r1kernels.moe.grouped_mm import grouped_mm, segments
from r1kernels.moe.route import Routing, check_routing, check_sort


def moe_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    routing: Routing,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """y[t] = Σ_j w[t, j]·down_e(silu(gate_e(x[t]))·up_e(x[t])) with e = ids[t, j].

    Args:
        x: [T, H], float32, bfloat16, float16 or float64.
        gate_up: [E, 2I, H], gate first, as HuggingFace has it; dtype of x.
        down: [E, H, I].
        routing: of ``moe_route``, or ``Routing.of(weights, ids, E)``.
        activation: what the model does between its two products, [P, 2I] → [P, I] (or what the
            first product's width is to it); None is SwiGLU, which is fused.
        gate_up_bias, down_bias: [E, 2I] and [E, H].
        transposed: gate_up is [E, H, 2I] and down [E, I, H] (GPT-OSS).

    Returns:
        [T, H], dtype of x; under ``torch.autocast`` x, the weights and the biases are cast first.
        Gradients flow to x, gate_up, down, the biases and routing.weights. A token without an
        expert gets 0, and so does an expert without tokens as its gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    x, gate_up, down, gate_up_bias, down_bias = autocast.cast(
        x, gate_up, down, gate_up_bias, down_bias
    )
    tensors = routing if isinstance(routing, Routing) else (routing,)
    _check(x, gate_up, down, activation, gate_up_bias, down_bias, transposed, *tensors)
    weights, _, _, offsets, gather, inverse = routing
    if activation is None and gate_up_bias is None and down_bias is None and not transposed:
        trained = (
            x.requires_grad or gate_up.requires_grad or down.requires_grad or weights.requires_grad
        )
        keep = trained and torch.is_grad_enabled()
        return MOE_EXPERTS(x, gate_up, down, weights, offsets, gather, inverse, keep)[0]

    rows = permute.moe_permute(x, gather, inverse)
    rows = _plus(grouped_mm(rows, gate_up, offsets, transposed=transposed), gate_up_bias, offsets)
    rows = (activation or swiglu)(rows)
    rows = _plus(grouped_mm(rows, down, offsets, transposed=transposed), down_bias, offsets)
    return combine.moe_combine(rows, weights, gather, inverse)


@remembered
def _check(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: Any,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    transposed: bool,
    *tensors: Any,
) -> None:
    """tensors: those of a Routing, or what was given in place of one."""
    check.flag("moe_experts", "transposed", transposed)
    shapes = check.Shapes("moe_experts")
    shapes("x", x, "T H", check.FLOATS)
    shapes("gate_up", gate_up, "E H U" if transposed else "E U H", (x.dtype,))
    shapes("down", down, "E I H" if transposed else "E H I", (x.dtype,))
    experts, width, inner = (shapes.sizes[name] for name in "EUI")
    routing = Routing(*tensors) if len(tensors) == len(Routing._fields) else tensors[0]
    check_routing("moe_experts", routing)
    shapes("routing.weights", routing.weights, "T k", (combine.accumulate_dtype(x),))
    check_sort("moe_experts", routing, experts)
    shapes("routing.offsets", routing.offsets, "E+1", (torch.int32,))
    shapes("routing.gather", routing.gather, "P", (torch.int32,))
    shapes("routing.inverse", routing.inverse, "T k", (torch.int32,))
    if not (activation is None or callable(activation)):
        got = check.described(activation)
        raise TypeError(f"moe_experts: activation: expected a function or None, got {got}")
    if activation is None and width != 2 * inner:
        raise ValueError(
            f"moe_experts: gate_up: expected 2·I = {2 * inner} rows an expert, got {width}"
        )
    for name, bias, size in (("gate_up_bias", gate_up_bias, "U"), ("down_bias", down_bias, "H")):
        if bias is not None:
            shapes(name, bias, f"E {size}", (x.dtype,))


def _plus(rows: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Each row and its expert's bias."""
    if bias is None:
        return rows
    return rows + moe_bias(bias, offsets, rows.shape[0])


def moe_bias(bias: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """[P, N]: the bias of each row's expert, as a product whose gradient needs no atomics."""
    ones = bias.new_ones(rows, 1)
    return grouped_mm(ones, bias[:, :, None], offsets)


def swiglu(h: Tensor) -> Tensor:
    """silu(gate)·up of [P, 2I], rounded once."""
    gate, up = h.to(combine.accumulate_dtype(h)).chunk(2, -1)
    return (F.silu(gate) * up).to(h.dtype)


def reference(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    offsets: Tensor,
    gather: Tensor,
    inverse: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows = permute.reference(x, gather, inverse)
    h = rows.new_zeros(rows.shape[0], gate_up.shape[1])
    out = torch.zeros_like(rows)
    padding = (gather < 0)[:, None]  # stays 0, whatever the weights are
    for e, part in segments(offsets):
        h[part] = (rows[part] @ gate_up[e].T).masked_fill(padding[part], 0)
        out[part] = (swiglu(h[part]) @ down[e].T).masked_fill(padding[part], 0)
    y = combine.reference(out, weights, gather, inverse)
    return y, h if keep else h.new_empty(0, h.shape[1])


def _fake(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    offsets: Tensor,
    gather: Tensor,
    inverse: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(gather.shape[0] if keep else 0, gate_up.shape[1])


def _validate(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    offsets: Tensor,
    gather: Tensor,
    inverse: Tensor,
    keep: bool,
) -> None:
    check.offsets("moe_experts", "offsets", offsets, gather.shape[0], "gather")
    check.in_range("moe_experts", "gather", gather, inverse.numel(), ignore=-1)
    check.in_range("moe_experts", "inverse", inverse.flatten(), gather.shape[0], ignore=-1)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(
        inputs.x, inputs.gate_up, inputs.down, inputs.weights, inputs.offsets, inputs.gather,
        inputs.inverse, output[1],
    )  # fmt: skip
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.kept = inputs.keep


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return MOE_EXPERTS.gradients()
    *inputs, h = ctx.saved_tensors
    if not ctx.kept:
        _, h = MOE_EXPERTS(*inputs, True)
    needed = MOE_EXPERTS.needed(ctx)
    frozen = not (needed.gate_up or needed.down)
    dx, dgate_up, ddown, dweights = MOE_EXPERTS_BACKWARD(grad, *inputs, h, frozen)
    if frozen:
        dgate_up = ddown = None
    return MOE_EXPERTS.gradients(x=dx, gate_up=dgate_up, down=ddown, weights=dweights)


def backward_reference(
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
    """Gradients of x, gate_up, down and weights; with ``frozen`` those of the two are [0]."""
    h = h.masked_fill((gather < 0)[:, None], 0)
    rows = permute.reference(x, gather, inverse)
    grads = permute.reference(grad, gather, inverse)
    slot = gather.clamp(min=0)
    weight = weights.new_zeros(len(rows), 1)
    if weights.numel():
        weight = weights.flatten()[slot, None].masked_fill(gather[:, None] < 0, 0)
    dgate_up, ddown = (t.new_zeros(0 if frozen else t.shape) for t in (gate_up, down))
    drows = torch.zeros_like(rows)
    dweight = weights.new_zeros(len(rows))
    for e, part in segments(offsets):
        w = weight[part]
        gate, up = h[part].to(weights.dtype).chunk(2, -1)
        s = gate.sigmoid()
        a = gate * s * up
        da = (grads[part] @ down[e]).to(weights.dtype)  # of the row as it leaves the expert
        dweight[part] = (da * a).sum(1)
        da = da * w
        dh = torch.cat([da * up * s * (1 + gate * (1 - s)), da * gate * s], 1).to(x.dtype)
        drows[part] = dh @ gate_up[e]
        if not frozen:
            dgate_up[e] = dh.T @ rows[part]
            ddown[e] = grads[part].T @ (a * w).to(x.dtype)
    dx = combine.reference(drows, None, gather, inverse)
    there = inverse >= 0
    dweights = torch.zeros_like(weights)
    if len(dweight):
        dweights = dweight[inverse.clamp(min=0)].where(there, 0)
    return dx, dgate_up, ddown, dweights


def _backward_fake(
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
) -> tuple[Tensor, ...]:
    dgate_up, ddown = (t.new_empty(0 if frozen else t.shape) for t in (gate_up, down))
    return x.new_empty(x.shape), dgate_up, ddown, weights.new_empty(weights.shape)


def _case(
    name: str, tokens: int, experts: int, top_k: int, width: int, inner: int,
    dtype: torch.dtype = torch.bfloat16, *, align: int = 1, keep: bool = True,
    skipped: bool = False, one: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens + experts)
        x = torch.randn(tokens, width, generator=rng)
        gate_up = torch.randn(experts, 2 * inner, width, generator=rng) / width**0.5
        down = torch.randn(experts, width, inner, generator=rng) / inner**0.5
        ids = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :top_k].contiguous()
        if skipped:
            ids[ids % 3 == 0] = experts
        if one:
            ids = torch.full_like(ids, experts // 2)
        weights = torch.rand(tokens, top_k, generator=rng)
        _, offsets, gather, inverse = sort.reference(ids, experts, align)
        floats = (tensor.to(device, dtype) for tensor in (x, gate_up, down))
        rest = (tensor.to(device) for tensor in (weights, offsets, gather, inverse))
        return *floats, *rest, keep

    slots = tokens * top_k
    flops = 6.0 * slots * width * inner
    used = min(experts, slots)
    moved = (2 * tokens * width + 3 * used * width * inner + 2 * slots * inner) * dtype.itemsize
    return Case(name, make, flops=flops, bytes=float(moved), bench=bench)


CASES = (
    _case("bf16", 50, 6, 2, 64, 48),
    _case("fp32", 50, 6, 2, 64, 48, torch.float32),
    _case("odd sizes", 41, 5, 3, 33, 27),
    _case("odd sizes, fp32", 41, 5, 3, 33, 27, torch.float32),
    _case("aligned", 50, 6, 2, 64, 48, align=16),
    _case("empty experts, skipped slots", 12, 40, 2, 48, 32, skipped=True),
    _case("all on one expert", 130, 3, 1, 48, 32, one=True),
    _case("one token", 1, 16, 4, 128, 64),
    _case("one token, fp32", 1, 16, 4, 128, 64, torch.float32),
    _case("no tokens", 0, 4, 2, 32, 16),
    _case("forward alone", 50, 6, 2, 64, 48, keep=False),
    _case("E 64, H 1024, I 512, T 1024, k 6", 1024, 64, 6, 1024, 512, bench="cpu"),
    _case("E 64, H 1024, I 512, T 1, k 6", 1, 64, 6, 1024, 512, keep=False, bench="cpu"),
    _case("E 128, H 2048, I 768, T 8192, k 8", 8192, 128, 8, 2048, 768, bench="cuda"),
)


def _backward_case(case: Case, frozen: bool) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        a = MOE_EXPERTS.bind(case.make(device))
        _, h = reference(*a._replace(keep=True))
        rng = torch.Generator().manual_seed(1)
        grad = torch.randn(a.x.shape, generator=rng).to(a.x)
        return (
            grad, a.x, a.gate_up, a.down, a.weights, a.offsets, a.gather, a.inverse, h, frozen,
        )  # fmt: skip

    name = case.name + (", frozen" if frozen else "")
    factor = 1 if frozen else 2
    return Case(name, make, flops=factor * case.flops, bytes=2 * case.bytes, bench=case.bench)


MOE_EXPERTS = Op(
    "moe_experts(Tensor x, Tensor gate_up, Tensor down, Tensor weights, Tensor offsets, "
    "Tensor gather, Tensor inverse, bool keep) -> (Tensor y, Tensor h)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.experts",
)
MOE_EXPERTS_BACKWARD = Op(
    "moe_experts_backward(Tensor grad, Tensor x, Tensor gate_up, Tensor down, Tensor weights, "
    "Tensor offsets, Tensor gather, Tensor inverse, Tensor h, bool frozen) "
    "-> (Tensor dx, Tensor dgate_up, Tensor ddown, Tensor dweights)",
    reference=backward_reference,
    fake=_backward_fake,
    cases=tuple(
        _backward_case(case, frozen)
        for frozen in (False, True)
        for case in CASES
        if "alone" not in case.name and "T 1," not in case.name and not (frozen and case.bench)
    ),
    triton="r1kernels.moe.triton.experts",
)
