"""Norms, rotations, gates and residual adds as fused ops: bit for bit what the model computes."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r1kernels
from r1kernels import hf
from r1kernels.hf.elementwise.activations import activation_of
from r1kernels.hf.elementwise.norms import NormRule, norm_rule
from r1kernels.hf.elementwise.rotations import rotation_of
from tests.gradients import gradients
from tests.hf.test_hf_families import FAMILIES, ROUTED, batch, tiny

transformers = pytest.importorskip("transformers")

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
MORE: dict[str, dict[str, Any]] = {
    "Phi3": {"bos_token_id": 1, "eos_token_id": 2},
    "Glm": {},
    "Glm4": {},
    "Olmo2": {},
    "SmolLM3": {},
    "Qwen3Moe": EXPERTS,
    "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 8},
    "Glm4Moe": ROUTED,
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Cohere2": {"logit_scale": 0.3},
    "Ernie4_5": {},
    "NanoChat": {},
}
ADD, SILU, HALVES = "residual add and norm", "silu(gate)·up", "rotary positions, halves"
LLAMA = [ADD, HALVES, "rms_norm: eps 1e-06, offset 0.0, rounded before the weight", SILU]
GEMMA = [ADD, HALVES, "rms_norm: eps 1e-06, offset 1.0", "gelu_tanh(gate)·up"]
# What becomes of a family's modules, each said once.
SAID = {
    "Llama": LLAMA,
    "Qwen3": LLAMA,
    "Gemma2": GEMMA,
    "Gemma3": GEMMA,
    "Glm4": [ADD, "rotary positions, pairs", SILU],
    "DeepseekV3": [ADD, f"rotary positions, pairs to halves; {HALVES}", SILU],
    "Olmo2": [ADD, HALVES, "rms_norm: eps 1e-05, offset 0.0", SILU],
    "Cohere": ["rotary positions, pairs, in float32", SILU],
    "Cohere2": ["rotary positions, pairs, in float32", SILU],
    "Ernie4_5": [ADD, "rotary positions, pairs, in float32", SILU],
    "GptOss": [ADD, HALVES, "rms_norm: eps 1e-05, offset 0.0"],
    "NanoChat": [ADD, "rotary positions, halves, turned back"],
    "Phi": [HALVES],
}


def model_of(family: str, **changes: Any) -> Any:
    FAMILIES.update(MORE)
    return tiny(family, **changes)


def patched(model: Any) -> Any:
    return hf.patch_elementwise(copy.deepcopy(model))


def reasons(model: Any) -> set[str]:
    return {line.split(": ", 1)[1] for line in hf.explain_elementwise(model).splitlines()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_logits_are_the_same_bits_and_gradients_near(family: str, dtype: torch.dtype) -> None:
    """On the reference, which sums as HuggingFace does; gradients have roundings of their own."""
    model = model_of(family).to(dtype)
    other, ids = patched(model), batch()["input_ids"]
    with r1kernels.using("torch"):
        expected, found = model(ids).logits, other(ids).logits
    assert torch.equal(found, expected)
    assert SAID.get(family, []) == [] or set(SAID[family]) <= reasons(other)
    narrow = dtype != torch.float32
    for logits in (expected, found):
        logits.float().pow(2).mean().backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            error = (a.grad - b.grad).float().norm() / a.grad.float().norm().clamp(min=1e-6)
            assert error < (0.03 if narrow else 1e-4), name


# Granite's loss falls too little in fifty steps for its division by 7.
@pytest.mark.parametrize("family", sorted({*FAMILIES, *MORE} - {"Granite"}))
def test_fifty_steps_have_the_losses_of_the_unpatched_model(family: str) -> None:
    """With head, experts and all between them patched, on the reference and on what runs here."""

    def losses(model: Any) -> Tensor:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        for _ in range(50):
            loss = model(**batch()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        return torch.stack(found)

    model = model_of(family, initializer_range=0.1)
    others = [hf.patch(copy.deepcopy(model), elementwise=True) for _ in range(2)]
    expected = losses(model)
    assert expected[-1] < 0.9 * expected[0]
    for other, backend in zip(others, (r1kernels.using("torch"), nullcontext()), strict=True):
        with backend:
            torch.testing.assert_close(losses(other), expected, rtol=1e-5, atol=0)


def test_with_gradient_checkpointing() -> None:
    model = patched(model_of("Qwen3")).train()
    expected = gradients(model, model(**batch()).loss)
    model.gradient_checkpointing_enable()
    for name, found in gradients(model, model(**batch()).loss).items():
        assert torch.equal(found, expected[name])


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_under_autocast(family: str) -> None:
    model = model_of(family)
    other = patched(model)
    with torch.autocast("cpu", torch.bfloat16), r1kernels.using("torch"):
        assert torch.equal(other(**batch()).loss, model(**batch()).loss)


def test_generates_the_same_with_a_cache() -> None:
    model = model_of("Qwen3")
    ids = batch()["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(patched(model).generate(ids, max_new_tokens=6, do_sample=False), expected)


def test_with_adapters() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "gate_proj"], modules_to_save=["norm"],
                             init_lora_weights=False)  # fmt: skip
    model = peft.get_peft_model(model_of("Llama"), config)
    other = hf.patch_elementwise(copy.deepcopy(model))
    found, expected = (gradients(m, m(**batch()).loss) for m in (other, model))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compiled() -> None:
    model = patched(model_of("Llama"))
    expected = model(**batch()).loss
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(**batch()).loss, expected)


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved],
                         ids=["deepcopy", "pickle", "save"])  # fmt: skip
def test_what_comes_out_of_a_copy_is_patched_and_on_its_own(carry: Any) -> None:
    model = hf.patch(model_of("DeepseekV3"), elementwise=True)
    expected = model(**batch()).loss
    other = carry(model)
    assert torch.equal(other(**batch()).loss, expected)
    assert hf.explain_elementwise(other) == hf.explain_elementwise(model)
    runs = [module for module in other.modules() if "forward" in vars(module)]
    assert all(module.forward.__self__ is module for module in runs)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert torch.equal(model(**batch()).loss, expected)


def test_unpatched_it_is_what_it_was() -> None:
    model = model_of("Llama")
    hf.unpatch(hf.patch(model, elementwise=True))
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(name.startswith("_r1kernels") for m in model.modules() for name in vars(m))
    hf.patch_elementwise(model)
    hf.unpatch(hf.patch(model, elementwise=True))  # what was there before it
    assert not any("forward" in vars(module) for module in model.modules())


def test_patch_is_asked_twice_with_the_same_options_or_refuses() -> None:
    model = hf.patch(model_of("Llama"), elementwise=True)
    hf.patch(model, elementwise=True)
    with pytest.raises(ValueError, match="elementwise: expected an unpatched model"):
        hf.patch(model)


def test_only_the_patched_instance_changes() -> None:
    model, other = model_of("Llama"), model_of("Llama")
    before = type(model.model.layers[0]).forward
    names = dict(vars(transformers.models.llama.modeling_llama))
    hf.patch_elementwise(model)
    assert type(model.model.layers[0]).forward is before
    assert vars(transformers.models.llama.modeling_llama) == names
    assert not any("forward" in vars(module) for module in other.modules())


def test_a_forward_that_was_replaced_stays_and_is_named() -> None:
    model = model_of("Llama")
    attention, norm = model.model.layers[0].self_attn, model.model.norm
    for module in (attention, norm):
        module.forward = module.forward
    hf.patch_elementwise(model)
    lines = hf.explain_elementwise(model).splitlines()
    assert "model.layers.0.self_attn: left, its forward was replaced" in lines
    assert "model.norm: left, its forward was replaced" in lines
    assert f"model.layers.1.self_attn: {HALVES}" in lines


def test_hooks_of_a_norm_see_the_call_that_they_expect() -> None:
    model = patched(model_of("Llama"))
    expected = model(**batch()).loss
    seen = []
    norm = model.model.layers[0].post_attention_layernorm
    norm.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    assert torch.equal(model(**batch()).loss, expected)
    (((x,), y),) = seen
    assert x.shape == y.shape


class Doubled(nn.Module):
    """Named as a norm is, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def test_what_computes_something_else_has_no_rule() -> None:
    assert norm_rule(Doubled()) == "it computes something else than rms_norm"
    norm = model_of("Llama").model.norm
    assert norm_rule(norm) == NormRule(1e-6, 0.0, True)
    assert norm_rule(norm.to("meta")) == NormRule(1e-6, 0.0, True)
    assert activation_of(nn.ReLU()) is None
    assert activation_of(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert rotation_of(lambda q, k, cos, sin: (q, k)) is None


def one_a_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As GPT-OSS rotates: tables of half a head, of whole heads."""

    def rotated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat(
            (a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]), -1
        )

    return rotated(q), rotated(k)


def test_tables_of_another_width_go_to_the_function_itself() -> None:
    rotation = rotation_of(one_a_pair)
    assert rotation is not None
    q, k = torch.randn(2, 3, 5, 16), torch.randn(2, 1, 5, 16)
    for width in (8, 1):  # one column is for all of them
        cos, sin = torch.randn(1, 5, width), torch.randn(1, 5, width)
        torch.testing.assert_close(rotation(q, k, cos, sin), one_a_pair(q, k, cos, sin))
    with pytest.raises(RuntimeError, match="size of tensor"):
        rotation(q, k, torch.randn(1, 5, 4), torch.randn(1, 5, 4))


def test_a_rotation_that_was_replaced_meanwhile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(model_of("Llama"))  # what was found is kept
    module = transformers.models.llama.modeling_llama
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    said = reasons(patched(model_of("Llama")))
    assert "left apply_rotary_pos_emb: it rotates in a way that rope does not" in said


def test_patching_draws_no_random_numbers() -> None:
    model, state = model_of("Phi3", resid_pdrop=0.5).train(), torch.get_rng_state()
    hf.patch_elementwise(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_not_patched_has_no_explanation() -> None:
    with pytest.raises(ValueError, match="expected a patched model"):
        hf.explain_elementwise(model_of("Llama"))
    with pytest.raises(ValueError, match="expected a patched model"):
        hf.unpatch_elementwise(model_of("Llama"))
