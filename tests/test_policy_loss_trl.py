"""The same numbers as TRL's own loss, whose arithmetic runs here on a stand-in for its trainer."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import r1kernels
from r1kernels.ops.losses import LOSSES, OPTIONS, ROLLOUT_CORRECTIONS

LENGTHS = (5, 9, 1, 4)
B, LONGEST, T = len(LENGTHS), max(LENGTHS), sum(LENGTHS)
COLUMN = torch.arange(LONGEST)
REAL = torch.tensor(LENGTHS)[:, None] > COLUMN  # [B, LONGEST], in the order of packed rows


def trl_loss(
    logprob: torch.Tensor, entropy: torch.Tensor, inputs: dict[str, Any], options: dict[str, Any]
) -> torch.Tensor:
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )
    arguments = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05, "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    }  # fmt: skip
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprob, entropy, None),
        accelerator=accelerator,
        args=SimpleNamespace(**{key: options.get(key, arguments[key]) for key in arguments}),
        model=SimpleNamespace(training=False),
        _metrics={"eval": defaultdict(list)},
        _entropy_bonus_enabled=options["entropy_coef"] != 0,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm="importance_sampling_ratio" in inputs,
        vllm_importance_sampling_correction=True,
        get_off_policy_mask=trainer.get_off_policy_mask,
        get_gamma_weights=trainer.get_gamma_weights,
        **{"off_policy_mask_threshold": None, **options},
    )
    return trainer._compute_loss(stand_in, None, inputs)


def trl_rollout_weight(drift: torch.Tensor, mask: torch.Tensor, mode: str | None) -> torch.Tensor:
    """What its ``_generate_and_score_completions`` makes of old − sampling, bounds 0.8 and 1.3."""
    drift = drift * mask
    ratio = (drift.sum(-1, keepdim=True) if mode.startswith("sequence") else drift).exp()
    if mode.endswith("truncate"):
        return ratio.clamp(0.8, 1.3)
    return ratio.masked_fill((ratio < 0.8) | (ratio > 1.3), 0.0)


PPO = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo")
FORMS = [
    (name, level)
    for name in (*PPO, "cispo", "sapo", "vespo")
    for level in [level for level in LOSSES[name].levels if level in ("token", "sequence")]
    or [None]
]
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias-corrected": {"use_bias_correction_kl": True},
    "off-policy mask": {"off_policy_mask_threshold": 0.02},
    **{mode: {"rollout_correction": mode} for mode in ROLLOUT_CORRECTIONS},
}


@pytest.mark.parametrize(
    ("loss_type", "level", "change"),
    [
        (*form, change)
        for form in FORMS
        for change in CHANGES
        if not (form[0] == "vespo" and change.startswith("sequence"))  # neither has it
    ],
)
def test_loss_and_gradient(loss_type: str, level: str | None, change: str) -> None:
    padded = [torch.randn(B, LONGEST) for _ in range(4)]
    logprob, old, ref = -2 + padded[0], -2 + padded[0] + 0.4 * padded[1], -2 + padded[2]
    sampling = old + 0.3 * padded[3]
    entropy, advantages = torch.rand(B, LONGEST), torch.randn(B)
    mask = REAL & (torch.rand(B, LONGEST) < 0.8)
    logprob.requires_grad_(), entropy.requires_grad_()
    accepted = LOSSES[loss_type].options
    options = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "epsilon_high": 1.1 if loss_type == "cispo" else 0.28,
        "delta": 1.5,
        "beta": 0.04,
        "entropy_coef": 0.01,
        "max_completion_length": 16,
        **CHANGES[change],
    }
    options = {key: v for key, v in options.items() if key not in OPTIONS or key in accepted}
    bounds = {"rollout_clip_min": 0.8, "rollout_clip_max": 1.3}
    ours = r1kernels.policy_loss(
        logprob[REAL],
        advantages,
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0),
        old_logprob=old[REAL],
        ref_logprob=ref[REAL],
        sampling_logprob=sampling[REAL],
        mask=mask[REAL],
        entropy=entropy[REAL],
        **options,
        **(bounds if "rollout_correction" in options else {}),
    ).loss
    inputs = {
        "prompt_ids": torch.zeros(B, 1).long(),
        "prompt_mask": torch.ones(B, 1).long(),
        "completion_ids": torch.zeros(B, LONGEST).long(),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "sampling_per_token_logps": sampling,
        "num_items_in_batch": mask.sum(),
    }
    if "rollout_correction" in options:
        mode = options.pop("rollout_correction")
        inputs["importance_sampling_ratio"] = trl_rollout_weight(old - sampling, mask, mode)
    # TRL spells GSPO as loss_type "grpo" at the level of the sequence.
    spelled = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    options |= {"epsilon_low": 0.2} | (spelled if loss_type == "gspo" else {})
    if level is None:
        options["importance_sampling_level"] = "token"
    theirs = trl_loss(logprob, entropy, inputs, options)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (logprob, entropy)),
        torch.autograd.grad(theirs, (logprob, entropy)),
    )
