"""The policy loss of a loop of one's own: from token ids to a loss, through a patched model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import hf

transformers = pytest.importorskip("transformers")

V, B, P, C = 41, 3, 4, 5


def tiny() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=2.0, pad_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    prompt = torch.arange(P) >= torch.tensor([0, 2, 1])[:, None]
    completion = torch.arange(C) < torch.tensor([5, 3, 4])[:, None]
    mask = torch.cat([prompt, completion], 1)
    return torch.randint(1, V, (B, P + C)).where(mask, 0), mask.long(), completion.long()


def test_equals_the_loss_of_its_log_probabilities() -> None:
    model, (ids, attention_mask, mask) = tiny(), batch()
    hf.patch(model)
    advantages, old = torch.randn(B), -3 + torch.randn(B, C)
    options = {"temperature": 0.8, "loss_type": "dapo", "num_active_tokens": 30}
    found = hf.grpo_loss(
        model, ids, attention_mask, mask, advantages=advantages, old_logprob=old, **options
    )
    logprob = hf.logprobs(model, ids, attention_mask, temperature=0.8).logprob[:, -C:]
    expected = r1kernels.policy_loss(
        logprob[mask.bool()],
        advantages,
        cu_seqlens=torch.cat([torch.zeros(1).long(), mask.sum(1).cumsum(0)]),
        old_logprob=old[mask.bool()],
        loss_type="dapo",
        num_active_tokens=30,
    ).loss
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.logprob, logprob.detach() * mask)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, parameters),
        torch.autograd.grad(expected, parameters),
        rtol=1e-4,
        atol=1e-6,
    )


def test_only_completion_rows_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def spy(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(hidden.shape[0])
        return r1kernels.fused_linear_grpo_loss(hidden, *args, **kwargs)

    monkeypatch.setattr("r1kernels.hf.grpo.fused_linear_grpo_loss", spy)
    model, (ids, attention_mask, mask) = tiny(), batch()
    hf.patch(model)
    hf.grpo_loss(model, ids, attention_mask, mask, advantages=torch.randn(B))
    assert rows == [B * C]


def test_completions_need_a_token_before_them() -> None:
    model, (ids, attention_mask, mask) = tiny(), batch()
    hf.patch(model)
    with pytest.raises(ValueError, match="grpo_loss: completion_mask: expected C < S = 5"):
        hf.grpo_loss(model, ids[:, P:], attention_mask, mask, advantages=torch.randn(B))


def test_the_auxiliary_loss_of_a_mixture() -> None:
    from tests import moe_models

    model, ids = moe_models.tiny("Qwen3Moe"), moe_models.tokens(3)
    mask, completion = torch.ones_like(ids), torch.ones(3, C).long()
    mask[0, :2] = 0
    expected = model(ids, mask, output_router_logits=True).aux_loss
    hf.patch(model)
    options = {"advantages": torch.randn(3)}
    plain = hf.grpo_loss(model, ids, mask, completion, **options)
    found = hf.grpo_loss(model, ids, mask, completion, router_aux_loss_coef=0.5, **options)
    torch.testing.assert_close(found.loss, plain.loss + 0.5 * expected)
    torch.testing.assert_close(found.metrics["aux_loss"], expected.detach())
    gates = [router.module.weight for router in hf.routers(model)]
    torch.testing.assert_close(
        torch.autograd.grad(found.loss - plain.loss, gates),
        torch.autograd.grad(0.5 * expected, gates),
    )
    dense, (ids, attention_mask, mask) = hf.patch(tiny()), batch()
    with pytest.raises(ValueError, match="router_aux_loss_coef: expected 0, since the forward of"):
        hf.grpo_loss(dense, ids, attention_mask, mask, router_aux_loss_coef=0.1, **options)


def test_no_library_is_imported_but_the_user_s() -> None:
    script = (
        "import json, sys; import r1kernels.hf, r1kernels.nn; print(json.dumps([*sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"transformers", "trl", "peft", "liger_kernel"} & set(json.loads(run.stdout))
