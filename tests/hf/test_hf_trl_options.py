"""A micro-batch on r1kernels' loss against TRL's own, option by option."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r1kernels.policy.losses import LOSSES

pytest.importorskip("trl")
pytest.importorskip("datasets")
import trl

from r1kernels.hf.trl import GRPOTrainer
from tests.trl_trainers import B, C, P, compare, inputs, model, trainer

HALF = {"top_entropy_quantile": 0.5}
NEITHER = "vesposequence"  # TRL warns, ours refuses
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TRL's trainer and ours on the same weights; a test sets what it varies."""
    folder, ours, theirs = tmp_path_factory.mktemp("runs"), model(), model()
    options = {"gradient_accumulation_steps": 2, "generation_batch_size": 2 * B}
    return trainer(trl.GRPOTrainer, folder, theirs, **options), trainer(
        GRPOTrainer, folder, ours, **options
    )


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


def test_refuses_images_by_their_name(pair: tuple[Any, Any]) -> None:
    ids = torch.ones(B, P + C).long()
    with pytest.raises(NotImplementedError, match=r"pixel_values: expected None, .*trl"):
        pair[1]._get_per_token_logps_and_entropies(
            pair[1].model, ids, ids, C, pixel_values=torch.ones(B)
        )


def test_every_loss_of_trl_is_one_of_ours() -> None:
    assert set(LOSS_TYPES) <= set(LOSSES)
