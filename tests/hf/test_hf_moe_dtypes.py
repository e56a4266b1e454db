"""Patched mixtures of experts in other dtypes than float32, and their routers' biases."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels import hf
from tests.gradients import gradients
from tests.moe_models import EXPERTS, MAIN, TOP_K, experts_of, loss_of, tiny, tokens

pytest.importorskip("transformers")


def bias_of(model: Any) -> list[Tensor]:
    return [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_the_bias_stays_float32(cast: Any) -> None:
    model = tiny("DeepseekV3")
    expected = [bias.clone() for bias in bias_of(model)]
    hf.patch_moe(model)
    cast(model)
    assert model.lm_head.weight.dtype != torch.float32
    assert all(torch.equal(a, b) for a, b in zip(bias_of(model), expected, strict=True))
    assert all(
        router.bias is b for router, b in zip(hf.routers(model), bias_of(model), strict=True)
    )
    model(tokens())
    model.float().to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(bias_of(model), expected, strict=True))
    copied = copy.deepcopy(model).half()
    assert all(torch.equal(a, b) for a, b in zip(bias_of(copied), expected, strict=True))


def test_a_small_update_of_the_bias_is_not_rounded_away_in_bfloat16() -> None:
    """An update of 0.001 at a bias of 5, where bfloat16 has steps of 0.03."""
    model = tiny("DeepseekV3")
    hf.patch_moe(model)
    model.to(torch.bfloat16)
    (first, *_) = hf.routers(model)
    assert first.bias is not None
    first.bias.fill_(5)
    z = torch.zeros(1, EXPERTS)
    assert first.choose(z).tolist() == [[0, 1, 2]]
    first.bias[5] += 0.001
    assert first.choose(z)[0, 0] == 5


def test_a_bias_in_bfloat16_is_widened() -> None:
    model = tiny("DeepseekV3").to(torch.bfloat16)
    expected = [bias.float() for bias in bias_of(model)]
    hf.patch_moe(model)
    assert all(torch.equal(a, b) for a, b in zip(bias_of(model), expected, strict=True))


def in_bfloat16(model: Any) -> Any:
    """As ``from_pretrained(dtype=torch.bfloat16)`` makes it: all but the routers' biases."""
    biases = [bias.clone() for bias in bias_of(model)]
    model.to(torch.bfloat16)
    for module in model.modules():
        if "e_score_correction_bias" in module._buffers:
            module._buffers["e_score_correction_bias"] = biases.pop(0)
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
@pytest.mark.parametrize("family", MAIN)
def test_bfloat16_is_as_near_to_float32_as_unpatched(family: str, autocast: bool) -> None:
    model, ids = tiny(family, initializer_range=0.1), tokens()
    exact = model(ids).logits
    exact_gradients = gradients(model, loss_of(model, ids))
    if not autocast:
        in_bfloat16(model)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, loss = model(ids).logits, loss_of(model, ids)
        found = gradients(model, loss)
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        assert {name: gradient.dtype for name, gradient in found.items()} == dtypes
        return logits, found

    theirs, their_gradients = run()
    hf.patch_moe(model)
    ours, our_gradients = run()
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()
    theirs, ours, exact = (
        torch.cat([found[name].float().flatten() for name in exact_gradients])
        for found in (their_gradients, our_gradients, exact_gradients)
    )
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("family", MAIN)
def test_autocast_leaves_products_of_experts_in_the_dtype_of_their_weights(family: str) -> None:
    """As transformers' grouped products are, which autocast does not reach."""
    model = tiny(family)
    hf.patch_moe(model)
    experts = experts_of(model)
    x, weights = torch.randn(7, 32), torch.rand(7, TOP_K)
    ids = torch.rand(7, EXPERTS).argsort(1)[:, :TOP_K]
    with torch.autocast("cpu", torch.bfloat16):
        found = experts(x, ids, weights)
    assert torch.equal(found, experts(x, ids, weights))
    experts.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert experts(x, ids, weights).dtype == torch.float32  # cast there and back
