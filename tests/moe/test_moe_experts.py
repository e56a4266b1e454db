"""moe_experts: formula, gradients, experts and tokens left out, the same bits in every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import r1kernels
from r1kernels.core import native
from r1kernels.moe import experts as ops
from r1kernels.moe.route import Routing
from r1kernels.testing.memory import extra_peak

EXPERTS, TOP_K, WIDTH, INNER = 5, 2, 24, 16
FUSED = (ops.MOE_EXPERTS, ops.MOE_EXPERTS_BACKWARD)
compiled = pytest.mark.skipif(native.load("cpp") is not None, reason="no C++ library")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class Layer:
    """Experts with leaves that want gradients."""

    def __init__(self, dtype: torch.dtype, width: int = WIDTH, inner: int = INNER) -> None:
        self.gate_up = (torch.randn(EXPERTS, 2 * inner, width) / width**0.5).to(dtype)
        self.down = (torch.randn(EXPERTS, width, inner) / inner**0.5).to(dtype)
        self.gate_up.requires_grad_()
        self.down.requires_grad_()

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor, **options: Any) -> Tensor:
        routing = Routing.of(weights, ids, EXPERTS)
        return r1kernels.moe_experts(x, self.gate_up, self.down, routing, **options)

    def gradients(
        self, x: Tensor, weights: Tensor, ids: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        """The result, and gradients of x, the weights of the routing, gate_up and down."""
        x, weights = x.detach().requires_grad_(), weights.detach().requires_grad_()
        y = self(x, weights, ids, **options)
        upstream = torch.linspace(-1, 1, y.shape[1]).to(y).expand_as(y)
        leaves = (x, weights, self.gate_up, self.down)
        return y.detach(), *torch.autograd.grad(y, leaves, upstream)


def tokens(
    count: int, dtype: torch.dtype, width: int = WIDTH, experts: int = EXPERTS
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ids = torch.rand(count, experts).argsort(1)[:, :TOP_K].contiguous()
    return torch.randn(count, width).to(dtype), torch.rand(count, TOP_K, dtype=wide), ids


def loop(layer: Layer, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    out = []
    for t in range(len(x)):
        y = torch.zeros_like(x[0])
        for w, e in zip(weights[t], ids[t].tolist(), strict=True):
            if e < EXPERTS:
                gate, up = (layer.gate_up[e] @ x[t]).chunk(2)
                y = y + w * (layer.down[e] @ (F.silu(gate) * up))
        out.append(y)
    return torch.stack(out)


def test_formula_and_gradients() -> None:
    layer = Layer(torch.float64)
    x, weights, ids = tokens(9, torch.float64)
    ids[2, 1] = ids[3] = EXPERTS
    leaves = (x.requires_grad_(), weights.requires_grad_(), layer.gate_up, layer.down)
    got, expected = layer(x, weights, ids), loop(layer, x, weights, ids)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def clamped(h: Tensor) -> Tensor:
    """GPT-OSS's gate, interleaved and clamped."""
    gate, up = h[:, ::2].clamp(max=7), h[:, 1::2].clamp(-7, 7)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("activation", [None, clamped], ids=["swiglu", "clamped"])
def test_gradcheck(
    activation: Callable[[Tensor], Tensor] | None, transposed: bool, biases: bool
) -> None:
    layer = Layer(torch.float64, width=3, inner=2)
    x, weights, ids = tokens(4, torch.float64, width=3)
    ids[1, 0] = EXPERTS
    swap = (lambda w: w.detach().transpose(1, 2).contiguous()) if transposed else Tensor.detach
    leaves = [x, weights, swap(layer.gate_up), swap(layer.down)]
    if biases:
        leaves += [torch.randn(EXPERTS, 4).double(), torch.randn(EXPERTS, 3).double()]

    def run(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *bias: Tensor) -> Tensor:
        return r1kernels.moe_experts(
            x, gate_up, down, Routing.of(weights, ids, EXPERTS), activation=activation,
            transposed=transposed, **dict(zip(("gate_up_bias", "down_bias"), bias, strict=False)),
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves])


@dtypes
@pytest.mark.parametrize("count", [1, 8, 203], ids=lambda n: f"T {n}")
def test_fused_equals_the_steps_one_by_one(dtype: torch.dtype, count: int) -> None:
    """Tokens per expert are no multiple of anything (TransformerEngine #2966)."""
    layer, batch = Layer(dtype), tokens(count, dtype)
    fused, steps = layer.gradients(*batch), layer.gradients(*batch, activation=ops.swiglu)
    for ours, theirs in zip(fused, steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=float(theirs.abs().max()) * (
            2e-2 if dtype == torch.bfloat16 else 1e-5))  # fmt: skip


@dtypes
def test_all_tokens_on_one_expert_and_the_others_empty(dtype: torch.dtype) -> None:
    layer, (x, weights, _) = Layer(dtype), tokens(300, dtype)
    ids = torch.full((300, TOP_K), EXPERTS)
    ids[:, 1] = 3
    y, _, _, dgate_up, ddown = layer.gradients(x, weights, ids)
    gate, up = (x.float() @ layer.gate_up[3].float().T).chunk(2, -1)
    expected = (F.silu(gate) * up) @ layer.down[3].float().T * weights[:, 1:]
    torch.testing.assert_close(y.float(), expected, rtol=3e-2, atol=3e-2)
    for gradient in (dgate_up, ddown):
        assert (gradient[3] != 0).any()
        assert (gradient[[0, 1, 2, 4]] == 0).all()


@dtypes
def test_skipped_slots_are_zero_in_both_passes(dtype: torch.dtype) -> None:
    """Slots of other ranks' experts add nothing, though memory there be NaN."""
    layer, (x, weights, ids) = Layer(dtype), tokens(40, dtype)
    ids[ids == 1] = EXPERTS
    ids[7] = EXPERTS + 3
    x[7] = torch.nan
    with torch.no_grad():
        layer.gate_up[1] = layer.down[1] = torch.nan
    skipped = ids >= EXPERTS
    weights[skipped] = torch.nan
    y, dx, dweights, dgate_up, ddown = layer.gradients(x, weights, ids)
    assert (y[7] == 0).all()
    assert (dx[7] == 0).all()
    assert (dweights[skipped] == 0).all()
    assert (dgate_up[1] == 0).all()
    assert (ddown[1] == 0).all()
    for tensor in (y, dx, dweights, dgate_up, ddown):
        assert tensor.isfinite().all()


@compiled
@dtypes
def test_a_token_is_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    layer, (x, weights, ids) = Layer(dtype, 390, 50), tokens(120, dtype, 390)
    with r1kernels.using("cpp", *FUSED):
        whole = layer.gradients(x, weights, ids)[:3]
        for part in (slice(0, 1), slice(50, 51), slice(3, 40)):
            some = layer.gradients(x[part], weights[part], ids[part])[:3]
            for all_tokens, few in zip(whole, some, strict=True):
                assert torch.equal(few, all_tokens[part])


@compiled
@dtypes
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    layer, batch, results = Layer(dtype, 130, 70), tokens(90, dtype, 130), []
    with r1kernels.using("cpp", *FUSED):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(layer.gradients(*batch))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@dtypes
def test_nothing_kept_gives_the_same_gradients(dtype: torch.dtype) -> None:
    layer, (x, weights, ids) = Layer(dtype), tokens(30, dtype)
    leaves = [leaf.requires_grad_() for leaf in (x, layer.gate_up, layer.down, weights)]
    rest = Routing.of(weights, ids, EXPERTS)[3:]
    results = []
    for keep in (True, False):
        y, h = ops.MOE_EXPERTS(*leaves, *rest, keep)
        assert len(h) == (x.shape[0] * TOP_K if keep else 0)
        results.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_frozen_experts_get_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (x, weights, ids) = Layer(torch.float32), tokens(30, torch.float32)
    _, dx, dweights, _, _ = layer.gradients(x, weights, ids)
    seen = []
    backward = ops.MOE_EXPERTS_BACKWARD
    monkeypatch.setattr(ops, "MOE_EXPERTS_BACKWARD", lambda *a: seen.append(a[-1]) or backward(*a))
    layer.gate_up.requires_grad_(False)
    layer.down.requires_grad_(False)
    x.requires_grad_()
    weights.requires_grad_()
    y = layer(x, weights, ids)
    upstream = torch.linspace(-1, 1, WIDTH).expand_as(y)
    assert all(map(torch.equal, torch.autograd.grad(y, (x, weights), upstream), (dx, dweights)))
    assert seen == [True]


def training_step(experts: int) -> Callable[[], Any]:
    width, inner = 256, 128
    gate_up = torch.randn(experts, 2 * inner, width, requires_grad=True)
    down = torch.randn(experts, width, inner, requires_grad=True)
    x, weights, _ = tokens(2 * experts, torch.float32, width)
    ids = torch.arange(4 * experts).remainder(experts).view(-1, TOP_K)

    def run() -> tuple[Tensor, ...]:
        y = r1kernels.moe_experts(x, gate_up, down, Routing.of(weights, ids, experts))
        return torch.autograd.grad(y.sum(), (gate_up, down))

    return run


@compiled
def test_the_gradient_of_all_experts_is_made_once() -> None:
    """Indexing W[e] expert by expert makes a full-size gradient for each (HuggingFace eager)."""
    memory = extra_peak(training_step, 64)  # 24 MiB of gradients
    assert memory.returned == 64 * 3 * 256 * 128 * 4
    assert memory.scratch < memory.returned / 2


def test_bad_arguments() -> None:
    layer, (x, weights, ids) = Layer(torch.float32), tokens(6, torch.float32)
    routing = Routing.of(weights, ids, EXPERTS)

    def call(**other: Any) -> Tensor:
        given = {"x": x, "gate_up": layer.gate_up, "down": layer.down, "routing": routing} | other
        return r1kernels.moe_experts(**given)

    with pytest.raises(ValueError, match="moe_experts: gate_up: expected H = 24"):
        call(gate_up=layer.gate_up[..., 1:])
    with pytest.raises(TypeError, match="moe_experts: down: expected dtype float32, got bfloat16"):
        call(down=layer.down.bfloat16())
    with pytest.raises(ValueError, match=r"moe_experts: gate_up: expected 2·I = 30 rows"):
        call(down=layer.down[..., 1:])
    with pytest.raises(ValueError, match="moe_experts: routing: expected one of E = 5 experts"):
        call(routing=Routing.of(weights, ids, EXPERTS + 1))
    with pytest.raises(ValueError, match=r"moe_experts: gather\[0\]: expected 0 ≤ gather < 12"):
        call(routing=routing._replace(gather=routing.gather + 100))
    with pytest.raises(ValueError, match="moe_experts: offsets: expected"):
        call(routing=routing._replace(offsets=routing.offsets.flip(0)))
