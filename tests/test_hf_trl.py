"""The trainer on r1kernels' loss against TRL's own: losses, metrics, and weights after training."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.ops.losses import LOSSES

pytest.importorskip("trl")
pytest.importorskip("datasets")
import datasets
import transformers
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from r1kernels.hf.trl import GRPOTrainer

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz"]
V, B, P, C = len(WORDS), 4, 3, 5
HALF = {"top_entropy_quantile": 0.5}
NEITHER = "vesposequence"  # TRL warns, ours refuses
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def model(**changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    sizes = {
        "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.4,
    }  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**sizes | changes))


def reward(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") + 0.1 * text.count("e") for text in completions]


def trainer(
    kind: type[trl.GRPOTrainer], folder: Path, policy: Any, peft: Any = None, **options: Any
) -> Any:
    settings = {
        "per_device_train_batch_size": B, "num_generations": 4, "max_completion_length": C,
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.1,
        "temperature": 0.9, "max_steps": 3, "seed": 7, "gradient_checkpointing": False,
    }  # fmt: skip
    return kind(
        policy,
        reward,
        trl.GRPOConfig(str(folder), **settings | options),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a b c", "d e", "f", "g h i j"]}),
        processing_class=tokenizer(),
        peft_config=peft,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TRL's trainer and ours on the same weights; a test sets what it varies."""
    folder, ours, theirs = tmp_path_factory.mktemp("runs"), model(), model()
    options = {"gradient_accumulation_steps": 2, "generation_batch_size": 2 * B}
    return trainer(trl.GRPOTrainer, folder, theirs, **options), trainer(
        GRPOTrainer, folder, ours, **options
    )


def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(2, V, (B, P + C), generator=rng)
    prompt = torch.arange(P) >= torch.tensor([0, 1, 2, 0])[:, None]
    completion = torch.arange(C) < torch.tensor([5, 2, 4, 1])[:, None]

    def near(scale: float) -> Tensor:
        return -3 + scale * torch.randn(B, C, generator=rng)

    return {
        "prompt_ids": ids[:, :P].where(prompt, 0),
        "prompt_mask": prompt.long(),
        "completion_ids": ids[:, P:].where(completion, 0),
        "completion_mask": completion.long(),
        "advantages": torch.tensor([1.2, -0.6, 0.3, -0.9]),
        "old_per_token_logps": near(1.0),
        "ref_per_token_logps": near(1.0),
        "num_items_in_batch": torch.tensor(31),
    }


def compare(
    pair: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    batch: dict[str, Tensor],
) -> None:
    """Loss, gradients and logged metrics of one micro-batch under changed attributes."""
    results = []
    for each in pair:
        for name, value in changes.items():
            monkeypatch.setattr(each.args if hasattr(each.args, name) else each, name, value)
            if hasattr(each, name):
                monkeypatch.setattr(each, name, value)
        monkeypatch.setattr(each, "_entropy_bonus_enabled", each.entropy_coef != 0)
        monkeypatch.setattr(
            each, "_metrics", {"train": defaultdict(list), "eval": defaultdict(list)}
        )
        monkeypatch.setattr(each, "current_gradient_accumulation_steps", 2, raising=False)
        each.model.train()
        each.model.zero_grad()
        loss = each._compute_loss(each.model, batch)
        loss.backward()
        gradients = {name: p.grad for name, p in each.model.named_parameters()}
        results.append((loss.detach(), gradients, dict(each._metrics["train"])))
    theirs, ours = results
    theirs[2].pop("vespo/phi_seq_mean", None)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [(t, level) for t in LOSS_TYPES for level in ("token", "sequence") if t + level != NEITHER],
)
def test_loss_gradients_and_metrics(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, loss_type: str, level: str
) -> None:
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.04}
    options["epsilon_high"] = 1.3 if loss_type == "cispo" else 0.28
    compare(pair, monkeypatch, options, inputs())


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.04, "use_bias_correction_kl": False},
        {"delta": 1.4},
        {"off_policy_mask_threshold": 0.1},
        {"loss_type": "grpo", "entropy_coef": 0.01},
        {"beta": 0.04, "loss_type": "dapo", "entropy_coef": 0.01},
        {"top_entropy_quantile": 0.3},
        {"beta": 0.04, "top_entropy_quantile": 0.6, "entropy_coef": 0.02},
        {
            "loss_type": "luspo",
            "importance_sampling_level": "sequence",
            "top_entropy_quantile": 0.5,
        },
        {"loss_type": "vespo"} | HALF,
        {"sapo_temperature_neg": 2.0, "loss_type": "sapo"},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_options(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    compare(pair, monkeypatch, options, inputs())


@pytest.mark.parametrize(
    "mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_liger_1082_the_sampling_correction_reaches_the_loss(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    batch = inputs()
    mask, old = batch["completion_mask"], batch["old_per_token_logps"]
    batch["sampling_per_token_logps"] = old + 0.6 * torch.randn(B, C)
    difference = (old - batch["sampling_per_token_logps"]) * mask
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp()
    kept = (
        ratio.clamp(0.5, 1.5)
        if mode.endswith("truncate")
        else ratio.where((ratio >= 0.5) & (ratio <= 1.5), 0)
    )
    batch["importance_sampling_ratio"] = kept
    options = {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": 0.5,
        "vllm_importance_sampling_clip_max": 1.5,
    }
    compare(pair, monkeypatch, options, batch)


def test_on_policy_and_tools(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = inputs()
    del batch["old_per_token_logps"]
    batch["tool_mask"] = torch.ones(B, C).long()
    batch["tool_mask"][0, 1] = 0
    compare(pair, monkeypatch, {"beta": 0.04}, batch)


@pytest.mark.parametrize("target", [0.1, 9.0])
def test_adaptive_entropy(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, target: float
) -> None:
    """The bonus of the step, and the coefficient that the controller leaves for the next."""
    changes = {
        "use_adaptive_entropy": True, "entropy_target": target, "entropy_coef": 0.02,
        "entropy_coef_delta": 0.005, "entropy_coef_min": 0.0, "entropy_coef_max": 1.0,
        "loss_type": "grpo",
    }  # fmt: skip
    for each in pair:
        monkeypatch.setattr(each, "_last_world_entropy", 0.05)
        monkeypatch.setattr(each, "_entropy_window_stats", None)
    compare(pair, monkeypatch, changes, inputs())
    theirs, ours = ((t.entropy_coef, t._last_world_entropy) for t in pair)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[0] == pytest.approx(0.025 if target == 9.0 else 0.015)
    compare(pair, monkeypatch, {"top_entropy_quantile": 0.5}, inputs())


def test_trl_6024_the_normaliser_is_that_of_the_step(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of unequal lengths give the gradient of both at once."""
    ours, batch = pair[1], inputs()
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    for steps in (1, 2):
        monkeypatch.setattr(ours, "current_gradient_accumulation_steps", steps, raising=False)
        monkeypatch.setattr(ours.args, "steps_per_generation", steps)
        ours.model.train()
        ours.model.zero_grad()
        for rows in torch.arange(B).split(B // steps):
            part = {name: value[rows] if value.dim() else value for name, value in batch.items()}
            ours._compute_loss(ours.model, part).backward()
        gradient = ours.model.lm_head.weight.grad.clone()
        if steps == 1:
            whole = gradient
    torch.testing.assert_close(gradient, whole)


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


def test_refuses_images_by_their_name(pair: tuple[Any, Any]) -> None:
    ids = torch.ones(B, P + C).long()
    with pytest.raises(NotImplementedError, match=r"pixel_values: expected None, .*trl"):
        pair[1]._get_per_token_logps_and_entropies(
            pair[1].model, ids, ids, C, pixel_values=torch.ones(B)
        )


def test_trl_6808_refuses_a_level_that_the_loss_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="importance_sampling_level: expected one of token"):
        trainer(
            GRPOTrainer, tmp_path, model(), loss_type="vespo", importance_sampling_level="sequence"
        )


def test_without_trl_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "r1kernels.hf.trl")
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


def test_every_loss_of_trl_is_one_of_ours() -> None:
    assert set(LOSS_TYPES) <= set(LOSSES)
