"""fp8_experts and FP8Experts: against moe_experts in float32, what is kept, sorted as needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import r1kernels
from r1kernels.fp8 import experts as ops
from r1kernels.moe.route import Routing
from r1kernels.nn import FP8Experts
from tests.fp8_measures import difference, saved_bytes, squares

EXPERTS, TOP_K, WIDTH, INNER = 5, 2, 160, 140
# A product of two quantized operands errs by 7e-4. SwiGLU multiplies two such products, whose
# errors add, and the down product or the weight gradient adds one more: 3 · 7e-4.
LIMIT = 2.5e-3


def leaves(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, gate_up, down and the weights of the routing."""
    x = torch.randn(tokens, WIDTH).to(dtype)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH) / WIDTH**0.5
    down = torch.randn(EXPERTS, WIDTH, INNER) / INNER**0.5
    weights = torch.rand(tokens, TOP_K)
    return tuple(tensor.requires_grad_() for tensor in (x, gate_up, down, weights))


def choices(tokens: int, experts: int = EXPERTS) -> Tensor:
    return torch.rand(tokens, experts).argsort(1)[:, :TOP_K].contiguous()


def experts(given: tuple[Tensor, ...], ids: Tensor, align: int = 128) -> Tensor:
    x, gate_up, down, weights = given
    routing = Routing.of(weights, ids, EXPERTS, align=align)
    return r1kernels.fp8_experts(x, gate_up, down, squares(gate_up), squares(down), routing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("align", [1, 128])
def test_against_moe_experts(dtype: torch.dtype, align: int) -> None:
    ours, ids = leaves(150, dtype), choices(150, EXPERTS + 1)  # some go to no expert
    ids[ids == 3] = EXPERTS  # and one expert has none
    theirs = tuple(leaf.detach().float().requires_grad_() for leaf in ours)
    y = experts(ours, ids, align)
    expected = r1kernels.moe_experts(*theirs[:3], Routing.of(theirs[3], ids, EXPERTS))
    upstream = torch.randn(expected.shape).to(dtype)
    y.backward(upstream)
    expected.backward(upstream.float())
    assert y.dtype == dtype
    assert difference(y, expected) < LIMIT
    for name, leaf, other in zip(("x", "gate_up", "down", "weights"), ours, theirs, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        assert difference(leaf.grad, other.grad) < LIMIT, name
    assert not ours[1].grad[3].any()
    assert not ours[2].grad[3].any()


def test_gathered_rows_are_kept_in_one_byte() -> None:
    given, ids = leaves(150, torch.bfloat16), choices(150)
    x, gate_up, down, weights = given
    routing = Routing.of(weights, ids, EXPERTS, align=128)
    codes = squares(gate_up), squares(down)
    kept = saved_bytes(
        lambda: r1kernels.fp8_experts(x, gate_up, down, *codes, routing),
        besides=(*codes[0][:2], *codes[1][:2], *routing),
    )
    rows = len(routing.gather)
    rows_of_x = rows * WIDTH + rows // 128 * WIDTH * 4
    assert kept == rows_of_x + rows * 2 * INNER * 2  # and the gate-up product in bfloat16


def test_frozen_weights_have_no_gradient() -> None:
    given, ids = leaves(90), choices(90)
    x, gate_up, down, weights = given
    expected = torch.autograd.grad(experts(given, ids).square().sum(), (x, weights))
    gate_up.requires_grad_(False)
    down.requires_grad_(False)
    experts(given, ids).square().sum().backward()
    assert gate_up.grad is None
    assert down.grad is None
    torch.testing.assert_close((x.grad, weights.grad), expected)


@pytest.mark.parametrize("trained", ["gate_up", "down"])
def test_one_of_two_weights_trained(trained: str) -> None:
    given, ids = leaves(90), choices(90)
    _, gate_up, down, _ = given
    one, other = (gate_up, down) if trained == "gate_up" else (down, gate_up)
    (expected,) = torch.autograd.grad(experts(given, ids).square().sum(), (one,))
    other.requires_grad_(False)
    experts(given, ids).square().sum().backward()
    assert other.grad is None
    assert torch.equal(one.grad, expected)


def test_gradient_of_codes_is_float32() -> None:
    (x, gate_up, down, weights), ids = leaves(60), choices(60)
    routing = Routing.of(weights, ids, EXPERTS, align=128)
    codes = squares(gate_up), squares(down)
    parameters = [nn.Parameter(code.data) for code in codes]
    for parameter in parameters:
        parameter.grad_dtype = torch.float32
    r1kernels.fp8_experts(x, *parameters, *codes, routing).square().sum().backward()
    experts((x, gate_up, down, weights), ids).square().sum().backward()
    for parameter, master in zip(parameters, (gate_up, down), strict=True):
        assert torch.equal(parameter.grad, master.grad)


@pytest.mark.parametrize("tokens", [0, 1, 150])
@pytest.mark.parametrize("align", [1, 16, 64, 128, 256])
def test_sorted_in_blocks_is_told_by_the_number_of_rows(tokens: int, align: int) -> None:
    weights = torch.rand(tokens, TOP_K)
    routing = Routing.of(weights, choices(tokens), EXPERTS, align=align)
    assert ops.in_blocks(routing, EXPERTS) == (align == 128 or not tokens)


def test_token_does_not_depend_on_its_batch() -> None:
    (x, gate_up, down, weights), ids = leaves(150, torch.bfloat16), choices(150)
    with torch.no_grad():
        whole = experts((x, gate_up, down, weights), ids, 1)
        for part in (slice(0, 1), slice(7, 20)):
            alone = experts((x[part], gate_up, down, weights[part]), ids[part], 1)
            assert torch.equal(alone, whole[part])


def test_no_tokens() -> None:
    given = leaves(0)
    experts(given, choices(0)).sum().backward()
    assert not given[1].grad.any()
    assert given[0].grad.shape == (0, WIDTH)


def test_errors_name_the_argument() -> None:
    (x, gate_up, down, weights), ids = leaves(9), choices(9)
    codes = squares(gate_up), squares(down)
    routing = Routing.of(weights, ids, EXPERTS)
    with pytest.raises(ValueError, match="fp8_experts: down: expected H = 160"):
        r1kernels.fp8_experts(x, gate_up, down.mT, *codes, routing)
    of_seven = Routing.of(weights, ids, 7)
    with pytest.raises(ValueError, match="fp8_experts: routing: expected one of E = 5"):
        r1kernels.fp8_experts(x, gate_up, down, *codes, of_seven)
    half = gate_up[:, :INNER].contiguous()
    half_codes = squares(half)
    with pytest.raises(ValueError, match="fp8_experts: gate_up: expected 2·I = 280"):
        r1kernels.fp8_experts(x, half, down, half_codes, codes[1], routing)


def test_module_trains_its_masters() -> None:
    layer = FP8Experts(EXPERTS, WIDTH, INNER)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, _, _, weights = leaves(60)
    routing = Routing.of(weights.detach(), choices(60), EXPERTS, align=128)
    expected = r1kernels.moe_experts(x, layer.gate_up_proj, layer.down_proj, routing)
    y = layer(x, routing)
    assert difference(y, expected) < LIMIT
    codes = layer.gate_up_codes(layer.gate_up_proj)
    y.square().sum().backward()
    optimizer.step()
    assert layer.gate_up_codes(layer.gate_up_proj) is not codes
    assert not torch.equal(layer(x, routing), y)


def test_compiles_into_one_graph() -> None:
    layer = FP8Experts(EXPERTS, WIDTH, INNER)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, _, _, weights = leaves(60)
    ids = choices(60)
    results = []
    for module in (layer, compiled):
        y = module(x, Routing.of(weights, ids, EXPERTS, align=128))
        wanted = (x, weights, *layer.parameters())
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), wanted)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
