"""Mixture-of-experts models, patched against unpatched."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from r1kernels import hf
from tests.gradients import assert_near, gradients
from tests.moe_models import (
    EXPERTS,
    FAMILIES,
    LAYERS,
    MAIN,
    TOP_K,
    V,
    experts_of,
    loss_of,
    tiny,
    tokens,
)

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_and_gradients(family: str) -> None:
    model, ids = tiny(family), tokens()
    model.set_experts_implementation("eager")
    expected = model(ids).logits
    expected_gradients = gradients(model, loss_of(model, ids))
    hf.patch_moe(model)
    assert len(hf.routers(model)) == LAYERS
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert_near(gradients(model, loss_of(model, ids)), expected_gradients)


@pytest.mark.parametrize("family", MAIN)
def test_fifty_steps_stay_together(family: str) -> None:
    def train(model: Any) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(50):
            loss = loss_of(model, tokens())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model = tiny(family, num_hidden_layers=1)
    other = copy.deepcopy(model)
    hf.patch_moe(other)
    expected = train(model)
    assert expected[-1] < 0.5 * expected[0]
    assert train(other) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", MAIN)
def test_generate_gives_the_same_tokens(family: str) -> None:
    model, ids = tiny(family), tokens()
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, **options)
    hf.patch_moe(model)
    assert torch.equal(model.generate(ids, **options), expected)
    assert model.config._experts_implementation == "r1"


@pytest.mark.parametrize("family", MAIN)
def test_unpatch_restores_everything(family: str) -> None:
    model, ids = tiny(family), tokens()
    before = [dict(vars(module)) for module in model.modules()]
    expected, implementation = model(ids).logits, model.get_experts_implementation()
    hf.patch_moe(model)
    assert model.config._experts_implementation == "r1"
    hf.unpatch_moe(model)
    assert hf.routers(model) == []
    assert model.get_experts_implementation() == implementation
    assert [vars(module).keys() for module in model.modules()] == [b.keys() for b in before]
    assert torch.equal(model(ids).logits, expected)


def test_patch_does_the_head_and_the_experts() -> None:
    model, ids = tiny("Qwen3Moe"), tokens()
    expected = model(ids, labels=ids).loss
    hf.patch(model)
    found = model(ids, labels=ids)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected)
    assert len(hf.routers(model)) == LAYERS
    hf.unpatch(model)
    assert hf.routers(model) == []
    assert model.config._experts_implementation != "r1"


def test_patch_after_patch_moe_and_back() -> None:
    model = tiny("Mixtral")
    assert hf.patch_moe(model) is model
    routers = hf.routers(hf.patch(model))
    assert hf.routers(hf.patch_moe(model)) == routers
    hf.unpatch(model)
    with pytest.raises(ValueError, match="unpatch_moe: MixtralForCausalLM: expected a patched"):
        hf.unpatch_moe(model)


def test_a_dense_model_does_not_change() -> None:
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(config), tokens()
    expected, implementation = model(ids).logits, model.get_experts_implementation()
    hf.patch_moe(model)
    assert model.get_experts_implementation() == implementation
    assert torch.equal(model(ids).logits, expected)
    hf.unpatch_moe(model)


@pytest.mark.parametrize("family", MAIN)
def test_router_logits_and_the_balance_loss(family: str) -> None:
    """They are recorded by hooks on the router's class."""
    model, ids = tiny(family, output_router_logits=True), tokens()
    expected = model(ids, labels=ids)
    hf.patch_moe(model)
    found = model(ids, labels=ids)
    assert len(found.router_logits) == LAYERS
    torch.testing.assert_close(found.router_logits, expected.router_logits)
    assert ("aux_loss" in found) == ("aux_loss" in expected)
    if "aux_loss" in expected:
        torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("family", MAIN)
def test_a_deep_copy_runs_its_own_routers(family: str) -> None:
    model, ids = tiny(family), tokens()
    hf.patch_moe(model)
    copied, expected = copy.deepcopy(model), model(ids).logits
    for router, other in zip(hf.routers(model), hf.routers(copied), strict=True):
        assert router.module is not other.module
        assert other.module.forward.__self__ is other.module
        assert other.layer == router.layer
        with torch.no_grad():
            other.module.weight.neg_()
    assert torch.equal(model(ids).logits, expected)
    assert not torch.allclose(copied(ids).logits, expected, atol=1e-2)
    hf.unpatch_moe(copied)
    assert len(hf.routers(model)) == LAYERS


def test_transformers_43362_two_runs_are_equal_bit_for_bit() -> None:
    model, ids = tiny("Qwen3Moe"), tokens(8, 16)
    hf.patch_moe(model)
    first = gradients(model, loss_of(model, ids))
    second = gradients(model, loss_of(model, ids))
    assert all(torch.equal(second[name], gradient) for name, gradient in first.items())


@pytest.mark.parametrize("family", MAIN)
def test_expert_parallel_sentinels_contribute_nothing(family: str) -> None:
    """Ids of ``num_experts`` and above are another rank's: zero in both passes."""
    model = tiny(family)
    hf.patch_moe(model)
    experts = experts_of(model)
    experts._is_expert_parallel = True
    ids = torch.tensor([[0, EXPERTS, 2], [EXPERTS, EXPERTS, EXPERTS + 5]])
    x = torch.randn(2, 32, requires_grad=True)
    weights = torch.rand(2, TOP_K, requires_grad=True)
    found = experts(x, ids, weights)
    one = torch.tensor([[0, 2]])
    torch.testing.assert_close(found[:1], experts(x[:1], one, weights[:1, ::2]))
    assert torch.equal(found[1], torch.zeros(32))
    found.sum().backward()
    assert torch.equal(weights.grad == 0, ids >= EXPERTS)
    assert torch.equal(x.grad[1], torch.zeros(32))
    assert not experts.down_proj.grad[[1, 3, 4, 5, 6, 7]].any()


EXPERTS_OF = {
    "nemotron_h.modeling_nemotron_h.NemotronHExperts": "no gate, squared ReLU",
    "aria.modeling_aria.AriaExperts": "transposed",
    "deepseek_v4.modeling_deepseek_v4.DeepseekV4Experts": "clamped",
    "openai_privacy_filter.modeling_openai_privacy_filter.OpenAIPrivacyFilterExperts": "biases",
}


@pytest.mark.parametrize("path", EXPERTS_OF, ids=EXPERTS_OF.values())
def test_experts_of_other_kinds(path: str) -> None:
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    config = SimpleNamespace(
        n_routed_experts=EXPERTS, moe_num_experts=EXPERTS, num_local_experts=EXPERTS,
        hidden_size=32, intermediate_size=16, moe_intermediate_size=16, moe_latent_size=None,
        mlp_hidden_act="relu2", hidden_act="silu", swiglu_limit=0.5, swiglu_alpha=1.7,
        _experts_implementation="eager",
    )  # fmt: skip
    experts = cls(config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, weights = torch.randn(7, 32, requires_grad=True), torch.rand(7, TOP_K, requires_grad=True)
    ids = torch.rand(7, EXPERTS).argsort(1)[:, :TOP_K]
    inputs = x, weights, *experts.parameters()
    expected = experts(x, ids, weights)
    expected_gradients = torch.autograd.grad(expected.square().sum(), inputs)
    hf.register_experts()
    config._experts_implementation = "r1"
    found = experts(x, ids, weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found_gradients = torch.autograd.grad(found.square().sum(), inputs)
    torch.testing.assert_close(found_gradients, expected_gradients, rtol=1e-4, atol=1e-4)


def test_experts_that_moe_experts_cannot_honour_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("Qwen3Moe"), tokens()
    expected, implementation = model(ids).logits, model.get_experts_implementation()
    monkeypatch.setattr(
        model.model.layers[1].mlp.experts, "has_post_expert_norm", True, raising=False
    )
    with pytest.warns(UserWarning, match="Qwen3MoeForCausalLM: experts left as they are, since"):
        hf.patch_moe(model)
    assert model.get_experts_implementation() == implementation
    assert len(hf.routers(model)) == LAYERS
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MAIN)
def test_saved_files_are_those_of_the_unpatched_model(family: str, tmp_path: Path) -> None:
    model, ids = tiny(family), tokens()
    model.save_pretrained(tmp_path / "before")
    hf.patch(model)
    model.save_pretrained(tmp_path / "after")
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "after").iterdir())
    for name in names:
        before, after = (tmp_path / when / name for when in ("before", "after"))
        assert before.read_bytes() == after.read_bytes(), name
    assert "r1" not in json.loads((tmp_path / "after/config.json").read_text()).values()
    loaded = type(model).from_pretrained(tmp_path / "after")
    assert loaded.config._experts_implementation != "r1"
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_from_pretrained_in_bfloat16_with_the_experts_of_r1(tmp_path: Path) -> None:
    tiny("DeepseekV3").save_pretrained(tmp_path)
    hf.register_experts()
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path, dtype=torch.bfloat16, experts_implementation="r1")
    expected = model.state_dict()
    assert model.config._experts_implementation == "r1"
    hf.patch_moe(model)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype="auto").state_dict()
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        assert again[name].dtype == tensor.dtype, name
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("family", ["DeepseekV3", "GptOss"])
def test_compiles_into_one_graph(family: str) -> None:
    model, ids = tiny(family), tokens()
    hf.patch_moe(model)
    expected = gradients(model, loss_of(model, ids))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(gradients(model, loss_of(compiled, ids)), expected)


def test_lora_on_attention_and_on_experts() -> None:
    peft = pytest.importorskip("peft")
    model, ids = tiny("Qwen3Moe"), tokens()
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    hf.patch_moe(model)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found, found_gradients = model(ids).logits, gradients(model, loss_of(model, ids))
    hf.unpatch_moe(model)
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert_near(found_gradients, gradients(model, loss_of(model, ids)))
    hf.patch_moe(model)
    assert len(hf.routers(model)) == LAYERS
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_one_token_and_none() -> None:
    model = tiny("Qwen3Moe")
    (layer, *_) = model.model.layers
    hidden = torch.randn(1, 1, 32)
    expected = layer.mlp(hidden)
    hf.patch_moe(model)
    torch.testing.assert_close(layer.mlp(hidden), expected)
    assert layer.mlp(hidden[:, :0]).shape == (1, 0, 32)


def test_patching_draws_no_random_numbers_and_warns_of_nothing() -> None:
    model, state = tiny("Mixtral"), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.patch_moe(model)
    assert torch.equal(torch.get_rng_state(), state)
