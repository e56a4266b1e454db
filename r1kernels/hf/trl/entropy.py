"""TRL's uses of the entropy: which tokens the policy term keeps, the bonus, and its controller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Entropy:
    """Of one micro-batch of ``trainer``; mask [B, C], steps: micro-batches of an optimizer step."""

    def __init__(self, trainer: Any, mode: str, mask: Tensor, steps: float) -> None:
        self.trainer, self.mode, self.steps = trainer, mode, steps
        self.tokens = mask  # [B, C], those of the policy term and of the bonus
        self.all = mask

    @property
    def coef(self) -> float:
        """Of the bonus in this step: the adaptive one is 0 while the entropy is above its target.

        The controller moves it between steps, so that all micro-batches of one have the same.
        """
        trainer, coef = self.trainer, float(self.trainer.entropy_coef)
        if trainer.use_adaptive_entropy:
            return coef if trainer._last_world_entropy <= trainer.args.entropy_target else 0.0
        return coef

    def choose(self, entropy: Tensor) -> bool:
        """Restrict ``tokens`` to those of high entropy [B, C], if only these are to be trained."""
        trainer = self.trainer
        if trainer.top_entropy_quantile >= 1:
            return False
        high = trainer.get_high_entropy_mask(
            entropy.detach(), self.all, 1 - trainer.top_entropy_quantile
        )
        self.tokens = self.all * high
        return True

    def bonus(self, entropy: Tensor) -> Tensor:
        """What the loss gets for entropies [B, C]: −coef times their mean, a share of the step."""
        total = (entropy * self.tokens).sum() / self.tokens.sum().clamp(min=1)
        return -self.coef * total / self.steps

    @torch.no_grad()
    def update(self, entropy: Tensor) -> None:
        """Move the coefficient of the steps to come, after the last micro-batch of this one."""
        trainer = self.trainer
        if not trainer.use_adaptive_entropy or self.mode != "train":
            return
        stats = torch.stack([(entropy * self.tokens).sum(), self.tokens.sum()])
        if trainer._entropy_window_stats is not None:
            stats = stats + trainer._entropy_window_stats
        trainer._entropy_window_stats = stats
        if not trainer.accelerator.sync_gradients:
            return
        total, tokens = trainer.accelerator.reduce(stats, reduction="sum")
        mean, args = (total / tokens.clamp(min=1)).item(), trainer.args
        if mean <= args.entropy_target:
            moved = min(trainer.entropy_coef + args.entropy_coef_delta, args.entropy_coef_max)
        else:
            moved = max(trainer.entropy_coef - args.entropy_coef_delta, args.entropy_coef_min)
        trainer.entropy_coef, trainer._last_world_entropy = moved, mean
        trainer._entropy_window_stats = None
