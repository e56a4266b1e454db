"""The trainer on r1kernels' loss against TRL's own: weights after training, mixtures, refusals."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")
import transformers
import trl
from transformers import Qwen2ForCausalLM

from r1kernels.hf.trl import GRPOTrainer
from tests.trl_trainers import B, C, V, compare, inputs, model, reward, trainer


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo", "beta": 0.05, "num_iterations": 2},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "temperature": 1.3},
        {"loss_type": "cispo", "epsilon_high": 5.0, "gradient_accumulation_steps": 2},
    ],
    ids=["dapo", "gspo", "cispo"],
)
def test_weights_after_training(tmp_path: Path, options: dict[str, Any]) -> None:
    """The same completions are drawn as long as the weights agree, so the whole run must."""
    runs = []
    model().save_pretrained(tmp_path / "model")  # TRL loads the reference model from there
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        policy = Qwen2ForCausalLM.from_pretrained(tmp_path / "model")
        run = trainer(kind, tmp_path, policy, **options)
        assert (run.ref_model is not None) == ("beta" in options)
        run.train()
        runs.append((run.model.state_dict(), logged(run)))
    theirs, ours = runs
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[0]["lm_head.weight"], model().lm_head.weight, atol=1e-3)


def test_adapters_after_training(tmp_path: Path) -> None:
    """The reference is the model without its adapter."""
    peft = pytest.importorskip("peft")
    runs = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        torch.manual_seed(3)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        run = trainer(kind, tmp_path, model(), lora, beta=0.05, num_iterations=2, max_steps=4)
        run.train()
        runs.append((run.model.state_dict(), logged(run)))
    theirs, ours = runs
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert any("lora_B" in name and value.any() for name, value in ours[0].items())


def logged(run: Any) -> list[dict[str, float]]:
    """What was logged, less how long it took."""
    return [
        {
            name: value
            for name, value in entry.items()
            if not any(word in name for word in ("time", "runtime", "per_second", "flos"))
        }
        for entry in run.state.log_history
    ]


def test_refuses_before_anything_is_loaded(tmp_path: Path) -> None:
    """Liger's import would fail where there is no GPU, with a message about drivers."""
    with pytest.raises(
        NotImplementedError, match=r"use_liger_kernel: True .* set use_liger_kernel"
    ):
        trainer(GRPOTrainer, tmp_path, "no/such-model", use_liger_kernel=True)
    processor = object.__new__(transformers.ProcessorMixin)
    with pytest.raises(NotImplementedError, match=r"processing_class: .* give its .tokenizer"):
        GRPOTrainer("no/such-model", reward, processing_class=processor)


def test_trl_6808_refuses_a_level_that_the_loss_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="importance_sampling_level: expected one of token"):
        trainer(
            GRPOTrainer, tmp_path, model(), loss_type="vespo", importance_sampling_level="sequence"
        )


def test_without_trl_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in ("r1kernels.hf.trl", "r1kernels.hf.trl.trainer"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="pip install"):
        import r1kernels.hf.trl  # noqa: F401


def test_the_same_arguments_in_the_same_order() -> None:
    ours, theirs = (
        [
            (p.name, p.default, p.kind)
            for p in inspect.signature(kind._get_per_token_logps_and_entropies).parameters.values()
        ]
        for kind in (GRPOTrainer, trl.GRPOTrainer)
    )
    assert ours == theirs


@pytest.mark.parametrize("size", [None, 3])
def test_log_probabilities_entropies_and_aux_loss(
    moe_pair: tuple[Any, Any], size: int | None
) -> None:
    batch = inputs()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    theirs, ours = (
        each._get_per_token_logps_and_entropies(each.model, ids, mask, C, size, True, True)
        for each in moe_pair
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def moe_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TRL's defaults: the coefficient is that of the model's config."""
    folder = tmp_path_factory.mktemp("moe")
    options = {"gradient_accumulation_steps": 2, "generation_batch_size": 2 * B}
    return (
        trainer(trl.GRPOTrainer, folder, mixture(), **options),
        trainer(GRPOTrainer, folder, mixture(), **options),
    )


def mixture() -> Any:
    config = transformers.Qwen3MoeConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, moe_intermediate_size=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        num_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        initializer_range=0.4, router_aux_loss_coef=0.3,
    )  # fmt: skip
    torch.manual_seed(5)
    return transformers.Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@pytest.mark.parametrize("coef", [0.3, 0.05])
def test_the_auxiliary_loss_of_a_mixture(
    moe_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, loss_type: str, coef: float
) -> None:
    for each in moe_pair:
        assert each.aux_loss_enabled
        assert each.router_aux_loss_coef == 0.3
    changes = {"loss_type": loss_type, "router_aux_loss_coef": coef}
    compare(moe_pair, monkeypatch, changes, inputs())
    gate = moe_pair[1].model.model.layers[0].mlp.gate.weight.grad
    compare(moe_pair, monkeypatch, changes | {"aux_loss_enabled": False}, inputs())
    assert not torch.allclose(moe_pair[1].model.model.layers[0].mlp.gate.weight.grad, gate)


def test_the_head_in_float32(tmp_path: Path) -> None:
    losses = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        each = trainer(kind, tmp_path, model().bfloat16(), cast_lm_head_to_fp32=True)
        each.current_gradient_accumulation_steps = 1
        loss = each._compute_loss(each.model.train(), inputs())
        loss.backward()
        with torch.autocast("cpu", torch.bfloat16):  # the cast stays, for the policy that samples
            hidden = torch.ones(2, 16, dtype=torch.bfloat16)
            assert (kind is trl.GRPOTrainer) or each.model.lm_head(hidden).dtype == torch.float32
            again = each._compute_loss(each.model, inputs()).detach()
        assert each.model.lm_head.weight.dtype == torch.float32
        losses.append((loss.detach(), each.model.lm_head.weight.grad, again))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
    assert losses[1][0] == losses[1][2]  # autocast does not reach the head
