"""Patched against unpatched: loss, log-probabilities and every gradient of tiny models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels import hf
from tests.gradients import assert_near, gradients

transformers = pytest.importorskip("transformers")

V, S = 67, 9
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    # Large weights, so that a softcap bends and a wrong scale shows.
    "initializer_range": 0.6,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 2,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
# What each family does to its head's output is in the comment.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama tied": {"tie_word_embeddings": True},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Mistral": {},
    "Gemma2": {"final_logit_softcapping": 3.0},  # 3·tanh(z/3)
    "Gemma3": {},
    "Gemma3 capped": {"final_logit_softcapping": 2.0},
    "Cohere": {"logit_scale": 0.3},  # 0.3·z
    "Granite": {"logits_scaling": 7.0},  # z/7
    "HyperCLOVAX": {"logits_scaling": 7.0},  # 7·z under the same name
    "Phi": {},  # a head with a bias
    "DeepseekV3": LATENT | ROUTED,
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
}


def tiny(family: str, **changes: Any) -> Any:
    name = family.split()[0]
    prefix = f"{name}Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{prefix}Config")(**SIZES | FAMILIES[family] | changes)
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    if model.lm_head.bias is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1, V, (3, S), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(S) >= torch.tensor([0, 2, 4])[:, None]
    labels = ids.where(mask, -100)
    labels[0, 3:5] = -100
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask.long(), "labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_equals_unpatched(family: str) -> None:
    model, inputs = tiny(family), batch()
    expected = model(**inputs)
    plain_gradients = gradients(model, expected.loss)
    exact = copy.deepcopy(model).double()  # what cancels is as inexact in float32, patched or not
    exact.set_experts_implementation("eager")  # grouped_mm takes no float64
    expected_gradients = gradients(exact, exact(**inputs).loss)
    hf.patch(model)
    found = model(**inputs)
    assert type(found) is type(expected)
    assert found.logits is None
    assert set(found) == set(expected) - {"logits"}
    torch.testing.assert_close(found.loss, expected.loss)
    assert_near(gradients(model, found.loss), expected_gradients, plain_gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_entropies(family: str) -> None:
    model, inputs = tiny(family), batch()
    labels = inputs["labels"][:, 1:]
    z = model(**inputs | {"labels": None}).logits[:, :-1].float() / 0.7
    wanted = labels != -100
    logp = z.log_softmax(-1)
    expected = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0].where(wanted, 0)
    entropy = -(logp.exp() * logp).sum(-1).where(wanted, 0)
    weight = torch.randn(expected.shape)
    expected_gradients = gradients(model, (weight * (expected + 0.1 * entropy)).sum())
    hf.patch(model)
    found = hf.logprobs(model, **inputs, temperature=0.7, entropy=True)
    torch.testing.assert_close(found, (expected, entropy), rtol=1e-5, atol=1e-5)
    loss = (weight * (found.logprob + 0.1 * found.entropy)).sum()
    assert_near(gradients(model, loss), expected_gradients)


def test_tied_embeddings_get_the_sum_of_both_gradients() -> None:
    model, inputs = tiny("Llama tied"), batch()
    hf.patch(model)
    together = gradients(model, model(**inputs).loss)["model.embed_tokens.weight"]
    untied = tiny("Llama")
    untied.load_state_dict(model.state_dict())
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    hf.patch(untied)
    apart = gradients(untied, untied(**inputs).loss)
    torch.testing.assert_close(
        together, apart["model.embed_tokens.weight"] + apart["lm_head.weight"]
    )


def test_unsloth_zoo_593_the_softcap_is_not_dropped() -> None:
    assert hf.head_of(tiny("Gemma2")).options["softcap"] == 3.0
    assert hf.head_of(tiny("Gemma3")).options["softcap"] is None


@pytest.mark.parametrize(
    ("family", "scale"), [("Cohere", 0.3), ("Granite", 1 / 7), ("HyperCLOVAX", 7.0)]
)
def test_trl_5691_the_logit_scale_is_neither_dropped_nor_inverted(
    family: str, scale: float
) -> None:
    assert hf.head_of(tiny(family)).options["logit_scale"] == pytest.approx(scale, rel=1e-12)


def test_trl_5691_scale_then_softcap() -> None:
    """A model of both: the cap bounds the scaled logits."""

    class Both(transformers.CohereForCausalLM):
        def forward(self, **kwargs: Any) -> Any:
            labels = kwargs.pop("labels", None)
            output = super().forward(**kwargs)
            output.logits = 2 * torch.tanh(output.logits / 2)
            if labels is not None:
                output.loss = F.cross_entropy(
                    output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
                )
            return output

    model = Both(transformers.CohereConfig(**SIZES, logit_scale=0.3))
    options = hf.head_of(model).options
    assert options["softcap"] == 2.0
    assert options["logit_scale"] == pytest.approx(0.3, rel=1e-9)
