"""Adapters on the head are honoured exactly or refused: never ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels import hf

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

V, S = 53, 8


def adapted(dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["lm_head", "q_proj"]}
    model = peft.get_peft_model(model, peft.LoraConfig(**options | lora))
    with torch.no_grad():  # B starts at zero, where an ignored adapter would not show
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(1, V, (2, S))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"lora_dropout": 0.5},  # the model is in eval mode: no dropout
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "rslora", "dropout", "not on the head", "modules_to_save"],
)
def test_trl_4612_lora_on_the_head_is_honoured(lora: dict[str, Any]) -> None:
    model, ids = adapted(**lora), tokens()
    expected = model(ids, labels=ids).loss
    expected_gradients = gradients(model, expected)
    hf.patch(model)
    found = model(ids, labels=ids)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradients(model, found.loss), expected_gradients)


def test_trl_4612_the_adapters_of_the_moment() -> None:
    """Disabled, switched, combined or merged after the model was patched."""
    model, ids = adapted(), tokens()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["lm_head"]))
    torch.nn.init.normal_(model.base_model.lm_head.lora_B["other"].weight)

    def check() -> float:
        expected = model(ids, labels=ids).loss
        hf.patch(model)
        found = model(ids, labels=ids).loss
        hf.unpatch(model)
        torch.testing.assert_close(found, expected)
        return found.item()

    losses = [check()]
    with model.disable_adapter():
        losses.append(check())
    model.set_adapter("other")
    losses.append(check())
    model.base_model.set_adapter(["default", "other"])
    losses.append(check())
    assert len(set(losses)) == 4
    model.merge_adapter()
    assert check() == pytest.approx(losses[-1], rel=1e-5)


def test_patched_before_peft() -> None:
    model, ids = adapted().unload(), tokens()
    hf.patch(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    torch.nn.init.normal_(model.base_model.lm_head.lora_B["default"].weight)
    found = model(ids, labels=ids).loss
    hf.unpatch(model)
    torch.testing.assert_close(found, model(ids, labels=ids).loss)


def test_trl_4612_a_small_update_is_not_rounded_away_in_bfloat16() -> None:
    model = adapted(torch.bfloat16)
    lora, hidden = model.base_model.lm_head, torch.randn(5, 16).bfloat16()
    with torch.no_grad():
        lora.lora_B["default"].weight.mul_(1e-3)  # far below the last bit of the weight
    head = hf.head_of(model)
    logits = head.rows(hidden).float() @ head.weight.float().T
    update = logits - hidden.float() @ lora.base_layer.weight.float().T
    down, up = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    expected = 5 / 3 * (hidden.float() @ down.float().T @ up.float().T)
    torch.testing.assert_close(update, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_dropout_is_drawn_in_training() -> None:
    model, ids = adapted(lora_dropout=0.5, target_modules=["lm_head"]).train(), tokens()
    hf.patch(model)
    first, second = (model(ids, labels=ids).loss for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "expected plain LoRA, got peft.*Dora"),
        ({"alora_invocation_tokens": [3]}, "expected plain LoRA, got peft.*ALora"),
    ],
    ids=["dora", "alora"],
)
def test_trl_4612_other_adapters_are_refused(lora: dict[str, Any], message: str) -> None:
    model = adapted(**lora)
    with pytest.raises(NotImplementedError, match=message):
        hf.patch(model)


def test_trl_4612_other_methods_are_refused() -> None:
    base = adapted().unload()
    model = peft.get_peft_model(base, peft.LoHaConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(NotImplementedError, match="peft's LoRA or modules_to_save"):
        hf.patch(model)


def test_trl_4612_adapters_per_row_are_refused() -> None:
    model, ids = adapted(), tokens()
    hf.patch(model)
    with pytest.raises(NotImplementedError, match="expected no hooks"):
        model(input_ids=ids, labels=ids, adapter_names=["__base__", "default"])


@pytest.mark.parametrize(
    "kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"]
)
def test_virtual_tokens_are_not_scored(kind: str) -> None:
    """Prompt and p-tuning put them before the others; prefix tuning into the cache."""
    model = adapted(target_modules=["q_proj"]).unload()
    options = {"encoder_hidden_size": 8} if kind == "PromptEncoderConfig" else {}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, **options)
    model, ids = peft.get_peft_model(model, config).eval(), tokens()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    z = model(input_ids=ids, attention_mask=mask).logits[:, -S:-1]
    wanted = mask[:, 1:].bool()
    expected = z.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].where(wanted, 0)
    labels = ids.masked_fill(mask == 0, -100)
    expected_loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    hf.patch(model)
    found = hf.logprobs(model, ids, mask).logprob
    torch.testing.assert_close(found, expected)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, expected_loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        rtol=1e-4,
        atol=1e-5,
    )
