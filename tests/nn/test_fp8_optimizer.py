"""FP8Optimizer: it learns, with masters and without; small updates, checkpoints, schedulers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r1kernels
from r1kernels import FP8Tensor
from r1kernels.fp8.dequantize import all_codes
from r1kernels.fp8.format import E4M3, encode, spread
from r1kernels.nn import FP8Optimizer, with_scales
from r1kernels.nn.fp8_optimizer import BAND
from r1kernels.nn.fp8_rounding import stochastic_e4m3, write_back
from tests.fp8_measures import squares

masters = pytest.mark.parametrize("master", [True, False], ids=["master", "no master"])


class Layer(nn.Module):
    """A layer as checkpoints in FP8 have it."""

    def __init__(
        self, inputs: int = 130, outputs: int = 40, scales: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        scale_format = "float" if scales == torch.float32 else "ue8m0"
        codes = squares(torch.randn(outputs, inputs) / inputs**0.5, scale_format)
        self.weight = nn.Parameter(codes.data)
        self.weight.grad_dtype = torch.float32
        self.weight_scale_inv = nn.Parameter(codes.scale.to(scales), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        codes = FP8Tensor(self.weight, self.weight_scale_inv.float())
        return r1kernels.fp8_linear(x, self.weight, codes, self.bias)

    def decoded(self) -> Tensor:
        weight = self.weight.detach()
        return r1kernels.fp8_dequantize(weight, self.weight_scale_inv.float(), dtype=torch.float32)


def problem() -> tuple[Tensor, Tensor]:
    x = torch.randn(96, 130)
    return x, x @ torch.randn(130, 40) / 130**0.5


def train(layer: Layer, optimizer: FP8Optimizer, steps: int) -> list[float]:
    torch.manual_seed(1)
    x, target = problem()
    losses = []
    for _ in range(steps):
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@masters
@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(torch.optim.AdamW, {"lr": 0.02}), (torch.optim.SGD, {"lr": 3.0, "momentum": 0.5})],
    ids=["AdamW", "SGD"],
)
def test_loss_falls(optimizer_class: Any, options: dict[str, float], master: bool) -> None:
    layer = Layer()
    optimizer = FP8Optimizer(optimizer_class, with_scales(layer), master=master, **options)
    losses = train(layer, optimizer, 40)
    assert losses[-1] < 0.1 * losses[0]
    assert layer.weight.dtype == E4M3
    assert layer.bias.detach().any()


@masters
def test_scales_that_are_exponents_are_stepped_like_powers_of_two(master: bool) -> None:
    found = []
    for scales in (torch.float32, torch.float8_e8m0fnu):
        torch.manual_seed(0)
        layer = Layer(scales=torch.float8_e8m0fnu)
        layer.weight_scale_inv.data = layer.weight_scale_inv.data.to(scales)
        optimizer = FP8Optimizer(
            torch.optim.AdamW, with_scales(layer), master=master, scale_format="ue8m0", lr=1.0
        )
        before = layer.weight_scale_inv.float().clone()
        losses = train(layer, optimizer, 10)
        assert layer.weight_scale_inv.dtype == scales
        assert not torch.equal(layer.weight_scale_inv.float(), before)
        found.append((losses, layer.weight.tolist(), layer.weight_scale_inv.float().tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_the_bits_have_masters_too(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.full((4,), 2.0, dtype=dtype))
    optimizer = FP8Optimizer(torch.optim.SGD, [parameter], lr=1.0)
    for _ in range(64):
        parameter.grad = torch.full_like(parameter, 2.0**-12)  # a sixteenth of a bit, or less
        optimizer.step()
    assert parameter.tolist() == [2 - 2.0**-6] * 4
    again = FP8Optimizer(torch.optim.SGD, [nn.Parameter(parameter.detach().clone())], lr=1.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(again.state_dict()["state"][0]["master"], torch.full((4,), 2 - 2.0**-6))


@masters
def test_tiny_updates_do_not_vanish(master: bool) -> None:
    """100 steps of 1/100 of the way: each less than a tenth of a step of the codes."""
    layer = Layer()
    optimizer = FP8Optimizer(torch.optim.SGD, with_scales(layer), master=master, lr=1.0)
    before = layer.decoded()
    for _ in range(100):
        layer.weight.grad = -before / 500
        optimizer.step()
    ratio = float((layer.decoded() * before).sum() / before.square().sum())
    assert ratio == pytest.approx(1.2, abs=0.01)


def test_tiny_updates_would_vanish_to_nearest() -> None:
    layer = Layer()
    scale = spread(layer.weight_scale_inv, *layer.weight.shape)
    moved = encode(layer.decoded() * 1.002, scale)
    assert torch.equal(moved.float(), layer.weight.float())


@masters
def test_resumed_run_is_the_same_run(master: bool) -> None:
    layer = Layer()

    def optimizer_of(layer: Layer) -> FP8Optimizer:
        options = {"lr": 0.01, "weight_decay": 0.1}
        return FP8Optimizer(torch.optim.AdamW, with_scales(layer), master=master, **options)

    optimizer = optimizer_of(layer)
    train(layer, optimizer, 3)
    saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict()))
    expected = train(layer, optimizer, 4)
    resumed = Layer()
    resumed.load_state_dict(saved[0])
    again = optimizer_of(resumed)
    again.load_state_dict(saved[1])
    assert train(resumed, again, 4) == expected
    assert torch.equal(resumed.weight.float(), layer.weight.float())
    assert torch.equal(resumed.weight_scale_inv, layer.weight_scale_inv)


def test_seed_decides_the_rounding() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        layer = Layer()
        options = {"master": False, "seed": seed, "lr": 0.01}
        train(layer, FP8Optimizer(torch.optim.AdamW, with_scales(layer), **options), 3)
        found.append(layer.decoded())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_without_masters_no_float_copy_stays() -> None:
    layer = Layer()
    optimizer = FP8Optimizer(torch.optim.SGD, with_scales(layer), master=False, lr=0.1)
    train(layer, optimizer, 1)
    held = [p for group in optimizer.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == layer.bias.numel()
    assert not any("master" in state for state in optimizer.state_dict()["state"].values())


@masters
def test_parameter_without_gradient_keeps_its_bytes(master: bool) -> None:
    layer = Layer()
    optimizer = FP8Optimizer(torch.optim.SGD, with_scales(layer), master=master, lr=0.1)
    before = layer.weight.detach().float().clone()
    layer.bias.grad = torch.ones_like(layer.bias)
    optimizer.step()
    assert torch.equal(layer.weight.float(), before)
    assert torch.equal(layer.bias, torch.full_like(layer.bias, -0.1))


@masters
def test_bands_of_a_tall_weight(master: bool) -> None:
    layer = Layer(130, BAND * 128 + 200)
    optimizer = FP8Optimizer(torch.optim.SGD, with_scales(layer), master=master, lr=1.0)
    before = layer.decoded()
    layer.weight.grad = 3 * before
    optimizer.step()
    torch.testing.assert_close(layer.decoded(), -2 * before)


@masters
def test_experts(master: bool) -> None:
    codes = squares(torch.randn(3, 140, 30))
    parameter, scale = nn.Parameter(codes.data.clone()), codes.scale.clone()
    parameter.grad_dtype = torch.float32
    before = r1kernels.fp8_dequantize(codes.data, codes.scale, dtype=torch.float32)
    optimizer = FP8Optimizer(torch.optim.SGD, [(parameter, scale)], master=master, lr=1.0)
    parameter.grad = before / 2
    optimizer.step()
    after = r1kernels.fp8_dequantize(parameter.detach(), scale, dtype=torch.float32)
    torch.testing.assert_close(after, before / 2)  # powers of two move the scale alone


@masters
def test_groups_and_a_scheduler(master: bool) -> None:
    layer = Layer()
    weight, bias = with_scales(layer)
    groups = [{"params": [weight], "lr": 1.0}, {"params": [bias]}]
    optimizer = FP8Optimizer(torch.optim.SGD, groups, master=master, lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    layer.bias.grad = torch.ones_like(layer.bias)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [0, 0]
    optimizer.step()  # at a rate of 0
    assert torch.equal(layer.bias, torch.full_like(layer.bias, -0.5))


@masters
def test_a_group_that_is_added_later_is_stepped_as_one_from_the_start(master: bool) -> None:
    found = []
    for later in (True, False):
        torch.manual_seed(0)
        layer, other = Layer(), Layer()
        groups = [{"params": with_scales(layer)}, {"params": with_scales(other), "lr": 0.02}]
        given = groups[:1] if later else groups
        optimizer = FP8Optimizer(torch.optim.AdamW, given, master=master, lr=0.01)
        if later:
            optimizer.add_param_group(groups[1])
        assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
        before = other.decoded()
        for each in (layer, other):
            torch.manual_seed(1)
            x, target = problem()
            (each(x) - target).square().mean().backward()
        optimizer.step()
        assert not torch.equal(other.decoded(), before)
        found.append([layer.decoded(), layer.bias, other.decoded(), other.bias])
        again = FP8Optimizer(torch.optim.AdamW, groups, master=master)
        again.load_state_dict(optimizer.state_dict())
    assert all(map(torch.equal, *found))


def test_codes_stay_what_they_are() -> None:
    values = all_codes().float()
    values = values[~values.isnan()]
    found = stochastic_e4m3(values, torch.Generator().manual_seed(0))
    assert torch.equal(found, values)


def test_rounding_is_to_a_neighbour_and_right_on_average() -> None:
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    for value in (1.03, -100.7, 447.0, 0.0011, -0.0151):
        found = stochastic_e4m3(torch.full((draws,), value), generator)
        below, above = found.aminmax()
        assert below <= value <= above
        assert set(found.tolist()) == {float(below), float(above)}
        assert torch.equal(found, found.to(E4M3).float())
        step = float(above - below)
        assert float(found.double().mean()) == pytest.approx(value, abs=4 * step / draws**0.5)


def test_scale_moves_by_powers_of_two() -> None:
    codes = squares(torch.randn(200, 256))
    values = r1kernels.fp8_dequantize(codes.data, codes.scale, dtype=torch.float32)
    values[:128, :128] *= 1.5
    values[128:, :128] *= 0.75
    values[:128, 128:] *= 0.25
    values[128:, 128:] = 0
    scale = codes.scale.clone()
    write_back(values, codes.data, scale, torch.Generator().manual_seed(0))
    factors = scale / codes.scale
    assert factors.tolist() == [[2.0, 0.25], [1.0, 1.0]]
    assert not codes.data.float().isnan().any()


def test_what_is_no_number_stays_so() -> None:
    codes = squares(torch.randn(4, 8))
    values = torch.randn(4, 8)
    values[1, 2], values[3, 3] = torch.nan, torch.inf
    scale = codes.scale.clone()
    write_back(values, codes.data, scale, torch.Generator().manual_seed(0))
    assert torch.equal(codes.data.float().isnan(), ~values.isfinite())
    assert scale.isfinite().all()


def test_errors_name_the_argument() -> None:
    layer = Layer()
    with pytest.raises(TypeError, match="FP8Optimizer: parameters: expected pairs"):
        FP8Optimizer(torch.optim.SGD, [layer.weight], lr=0.1)
    with pytest.raises(TypeError, match=r"expected parameters and pairs .*, got str"):
        FP8Optimizer(torch.optim.SGD, layer.named_parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"expected a scale \[1, 2\], float32"):
        FP8Optimizer(torch.optim.SGD, [(layer.weight, torch.ones(1, 1))], lr=0.1)
    kept = FP8Optimizer(torch.optim.SGD, with_scales(layer), lr=0.1)
    other = FP8Optimizer(torch.optim.SGD, with_scales(layer), lr=0.1, master=False)
    with pytest.raises(ValueError, match="state_dict: expected one with masters"):
        kept.load_state_dict(other.state_dict())
