"""TRL's metrics of one micro-batch, under TRL's names, from what the fused loss returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import nanmax, nanmin

from r1kernels.head.fused_linear_loss import FusedLoss


@torch.no_grad()
def log_metrics(
    trainer: Any, mode: str, fused: FusedLoss, inputs: dict[str, Any], mask: Tensor
) -> None:
    """Appends to ``trainer._metrics[mode]``: means over the tokens of every process."""
    log = trainer._metrics[mode]

    def mean(values: Tensor) -> float:
        """Of [B, C] over active tokens, or of [B, 1] over sequences."""
        weight = torch.ones_like(values) if values.shape[1] == 1 else mask.to(values)
        sums = [(values * weight).sum(), weight.sum()]
        total, count = trainer.accelerator.reduce(torch.stack(sums), reduction="sum")
        return (total / count.clamp(min=1)).item()

    if trainer._entropy_bonus_enabled:
        policy = trainer.accelerator.gather(fused.metrics["policy_loss"])
        log["policy_loss"].append(policy.nanmean().item())
        if mode == "train" and trainer.accelerator.sync_gradients:
            log["entropy_coef"].append(trainer.entropy_coef)
    if "kl" in fused.metrics:
        log["kl"].append(mean(fused.metrics["kl"].expand(mask.shape)))
    assert fused.entropy is not None  # it was asked for
    log["entropy"].append(mean(fused.entropy))

    old = inputs.get("old_per_token_logps")
    log_ratio = torch.zeros_like(fused.logprob) if old is None else (fused.logprob - old) * mask
    if trainer.importance_sampling_level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    ratio, advantages = log_ratio.exp(), inputs["advantages"].view(mask.shape[0], -1)
    if trainer.loss_type == "cispo":
        capped = (ratio > trainer.epsilon_high) & (advantages > 0)
        log["cispo_clip_ratio"].append(mean(capped.float()))
    elif trainer.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
        low = ((ratio < 1 - trainer.epsilon_low) & (advantages < 0)).float()
        high = ((ratio > 1 + trainer.epsilon_high) & (advantages > 0)).float()
        log["clip_ratio/low_mean"].append(mean(low))
        log["clip_ratio/high_mean"].append(mean(high))
        log["clip_ratio/region_mean"].append(mean(low + high))
        per_sequence = [
            trainer.accelerator.gather(
                (clipped * mask).sum(1) / mask.sum(1) if ratio.shape[1] > 1 else clipped[:, 0]
            )
            for clipped in (low, high)
        ]
        log["clip_ratio/low_min"].append(nanmin(per_sequence[0]).item())
        log["clip_ratio/high_max"].append(nanmax(per_sequence[1]).item())
