"""fp8_linear and FP8Linear: products against float32, what is kept, when codes are made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import r1kernels
from r1kernels.fp8.format import E4M3, FP8Tensor
from r1kernels.nn import FP8Linear
from tests.fp8_measures import difference, saved_bytes, squares

# Rounding to e4m3 errs by 2.6 % in the root mean square: two such operands make 2·0.026²/2 = 7e-4.
LIMIT = 1e-3


def leaves(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x = torch.randn(rows, inputs).to(dtype)
    weight, bias = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    return tuple(tensor.requires_grad_() for tensor in (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(70, 203, 141), (256, 256, 384)], ids=str)
@pytest.mark.parametrize("scale_format", ["float", "ue8m0"])
def test_products_against_float32(
    dtype: torch.dtype, sizes: tuple[int, int, int], scale_format: str
) -> None:
    ours = leaves(*sizes, dtype)
    theirs = tuple(leaf.detach().float().requires_grad_() for leaf in ours)
    x, weight, bias = ours
    y = r1kernels.fp8_linear(x, weight, squares(weight), bias, scale_format=scale_format)
    expected = F.linear(*theirs)
    upstream = torch.randn(expected.shape).to(dtype)
    y.backward(upstream)
    expected.backward(upstream.float())
    assert y.dtype == dtype
    assert difference(y, expected) < LIMIT
    for name, leaf, other in zip(("dx", "dW", "db"), ours, theirs, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert difference(leaf.grad, other.grad) < LIMIT, name


def test_leading_dimensions_and_no_rows() -> None:
    x, weight, bias = leaves(24, 130, 20, torch.float32)
    codes = squares(weight)
    flat = r1kernels.fp8_linear(x, weight, codes, bias)
    deep = r1kernels.fp8_linear(x.view(2, 3, 4, 130), weight, codes, bias)
    assert torch.equal(deep, flat.view(2, 3, 4, 20))
    torch.testing.assert_close(r1kernels.fp8_linear(x[3], weight, codes, bias), flat[3])
    r1kernels.fp8_linear(x[:0].view(0, 5, 130), weight, codes, bias).sum().backward()
    assert not weight.grad.any()


def test_row_does_not_depend_on_its_batch() -> None:
    x, weight, bias = leaves(150, 256, 96, torch.bfloat16)
    codes = squares(weight)
    whole = r1kernels.fp8_linear(x, weight, codes, bias)
    for rows in (slice(0, 1), slice(7, 20), slice(149, 150)):
        assert torch.equal(r1kernels.fp8_linear(x[rows], weight, codes, bias), whole[rows])


def test_input_is_kept_in_one_byte() -> None:
    x, weight, _ = leaves(256, 512, 128, torch.bfloat16)
    codes = squares(weight)
    kept = saved_bytes(lambda: r1kernels.fp8_linear(x, weight, codes), besides=codes[:2])
    assert kept == x.numel() * (1 + 4 / 128)
    weight.requires_grad_(False)
    assert saved_bytes(lambda: r1kernels.fp8_linear(x, weight, codes), besides=codes[:2]) == 0


def test_frozen_weight_has_no_gradient() -> None:
    x, weight, bias = leaves(40, 128, 64, torch.float32)
    trained = r1kernels.fp8_linear(x, weight, squares(weight), bias)
    dx, _ = torch.autograd.grad(trained.square().sum(), (x, weight))
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    y = r1kernels.fp8_linear(x, weight, squares(weight), bias)
    y.square().sum().backward()
    assert weight.grad is None
    assert torch.equal(x.grad, dx)


def test_codes_of_the_transposed_weight_give_the_same_gradient() -> None:
    x, weight, _ = leaves(40, 200, 144, torch.float32)
    codes = squares(weight)
    both = codes._replace(data_t=codes.data.view(torch.uint8).T.contiguous().view(E4M3))
    grads = []
    for quantized in (codes, both, codes._replace(data_t=codes.data[:1])):  # of another shape: none
        y = r1kernels.fp8_linear(x, weight, quantized)
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(grads[1], grads[0])
    assert torch.equal(grads[2], grads[0])


def test_what_passed_the_checks_once_is_checked_again_where_it_differs() -> None:
    x, weight, bias = leaves(4, 130, 20, torch.float32)
    codes = squares(weight)
    for _ in range(2):
        r1kernels.fp8_linear(x, weight, codes, bias)
    r1kernels.fp8_linear(x[:2].view(1, 2, 130), weight, codes, bias)
    with pytest.raises(ValueError, match="fp8_linear: weight: expected K = 129"):
        r1kernels.fp8_linear(x[:, 1:], weight, codes, bias)
    with pytest.raises(ValueError, match="fp8_linear: bias: expected N = 20"):
        r1kernels.fp8_linear(x, weight, codes, bias[1:])
    with pytest.raises(TypeError, match="fp8_linear: x: expected dtype"):
        r1kernels.fp8_linear(x.double(), weight, codes, bias)


def test_gradient_of_codes_is_float32() -> None:
    x, weight, _ = leaves(40, 200, 64, torch.bfloat16)
    codes = squares(weight)
    parameter = nn.Parameter(codes.data)
    with pytest.raises(TypeError, match="grad_dtype float32"):
        r1kernels.fp8_linear(x, parameter, codes)
    parameter.grad_dtype = torch.float32
    r1kernels.fp8_linear(x, parameter, codes).float().square().sum().backward()
    r1kernels.fp8_linear(x, weight, codes).float().square().sum().backward()
    assert parameter.grad.dtype == torch.float32
    assert torch.equal(parameter.grad, weight.grad)


def test_autocast_gives_its_dtype_and_the_same_products() -> None:
    layer = FP8Linear(200, 40)
    x = torch.randn(9, 200)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x.bfloat16()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 100)}, "fp8_linear: weight: expected K = 100"),
        ({"x": torch.zeros(3, 130, dtype=torch.float64)}, "fp8_linear: x: expected dtype"),
        ({"x": torch.tensor(1.0)}, r"fp8_linear: x: expected shape \[..., K\]"),
        ({"scale": torch.ones(20, 2)}, "fp8_linear: quantized.scale: expected a scale"),
        ({"bias": torch.zeros(3)}, "fp8_linear: bias: expected N = 20"),
        ({"scale_format": "e8m0"}, "fp8_linear: scale_format: expected one of float, ue8m0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "".join(value),
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(3, 130), "scale": torch.ones(1, 2), "bias": torch.zeros(20)}
    given |= {"scale_format": "float"} | change
    codes = FP8Tensor(torch.zeros(20, 130).to(E4M3), given["scale"])
    with pytest.raises((ValueError, TypeError), match=message):
        r1kernels.fp8_linear(
            given["x"], torch.zeros(20, 130), codes, given["bias"],
            scale_format=given["scale_format"],
        )  # fmt: skip


def test_module_is_a_linear_layer() -> None:
    linear = nn.Linear(150, 40, dtype=torch.bfloat16).eval()
    layer = FP8Linear.from_linear(linear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training
    assert list(layer.state_dict()) == list(linear.state_dict())
    x = torch.randn(60, 150, dtype=torch.bfloat16)
    assert difference(layer(x), linear(x)) < LIMIT


@pytest.mark.parametrize("fused", [False, True])  # fused steps do not move the version counter
def test_codes_are_made_again_after_a_step_and_not_otherwise(fused: bool) -> None:
    layer = FP8Linear(128, 128)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    x = torch.randn(20, 128)
    codes = layer.codes(layer.weight)
    layer(x).square().sum().backward()
    assert layer.codes(layer.weight) is codes
    optimizer.step()
    fresh = layer.codes(layer.weight)
    assert fresh is not codes
    assert torch.equal(fresh.data, squares(layer.weight).data)
    assert layer.codes(layer.weight) is fresh
    layer.bfloat16()
    assert torch.equal(layer.codes(layer.weight).data, squares(layer.weight).data)


def test_codes_of_a_rollout_serve_training() -> None:
    layer = FP8Linear(130, 20)
    x = torch.randn(9, 130)
    with torch.inference_mode():
        y = layer(x)
    codes = layer.codes(layer.weight)
    again = layer(x)
    again.sum().backward()
    assert layer.codes(layer.weight) is codes
    assert torch.equal(again, y)


def test_another_weight_and_a_copy_have_codes_of_their_own() -> None:
    layer = FP8Linear(130, 20)
    x = torch.randn(9, 130)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    data = layer.weight.detach()
    layer.weight = nn.Parameter(data)  # at the same place, as yet unwritten
    data.mul_(2)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * (y - layer.bias))
    layer.weight.data.zero_()  # past the counter
    layer.codes.forget()
    assert torch.equal(layer(x), layer.bias.expand(9, 20))


def test_two_micro_batches_accumulate_to_one() -> None:
    """Blocks of the weight gradient run along the rows: halves of 128 rows share no scale."""
    layer = FP8Linear(130, 70)
    x = torch.randn(256, 130)
    layer(x).square().sum().backward()
    whole = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for part in x.split(128):
        layer(part).square().sum().backward()
    for parameter, expected in zip(layer.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-4)


def test_compiles_into_one_graph() -> None:
    layer = FP8Linear(130, 70)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(20, 130, requires_grad=True)
    results = []
    for module in (layer, compiled):
        y = module(x)
        wanted = (x, *layer.parameters())
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), wanted)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(compiled(x), layer(x))  # the graph holds no codes of before
