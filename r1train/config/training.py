"""What every training stage is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1train.config.schema import (
    Count,
    CountOrZero,
    Decay,
    NonNegative,
    Positive,
    Section,
    Share,
)

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class TrainingConfig(Section):
    """AdamW, its schedule, the balance of experts, micro-batches and checkpoints."""

    learning_rate: Positive = 1e-5
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the learning rate after warm-up."""
    min_lr_rate: Share = 0.0
    """Where "linear" and "cosine" end, as a share of the peak."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled decay."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.999
    """Decay of the second moment."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this 2-norm."""
    expert_bias_update_rate: NonNegative = 1e-3
    """What is added to or taken from each router bias an update, to even out the experts' load
    (DeepSeek-V3: 1e-3); routers without a bias, and dense models, have nothing to update."""
    token_budget: Count = 16384
    """Tokens of a micro-batch: each prompt once, with all that follows it, no padding."""
    save_steps: CountOrZero | None = None
    """Steps between checkpoints that a run can be resumed from; 0: none (unset: as many as two
    minutes take)."""
