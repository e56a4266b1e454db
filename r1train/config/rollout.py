"""How completions are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1train.config.schema import Count, Positive, Section, Share


@dataclass(frozen=True)
class RolloutConfig(Section, section="rollout"):
    """Sampling of the completions that are trained on."""

    temperature: Positive = 1.0
    """Sampling temperature; the learner divides its logits by the same one (R1: 1)."""
    top_p: Share = 1.0
    """Must stay 1 in training."""
    max_completion_length: Count = 256
    """Tokens after which a completion is cut off (R1: 32,768, then 65,536)."""
    stop: tuple[str, ...] = ()
    """Strings after which a completion ends, beside the model's stop tokens (vLLM's stop; it keeps
    them); evaluation has the same."""
    batch_size: Count = 256
    """Completions decoded at the same time, at most."""
    max_memory_gib: Positive | None = None
    """What decoding may take beside the weights, by which batches become smaller (unset: a quarter
    of the device's memory, or the container's)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of a copy of the weights that rollouts are sampled from (unset: the trainer's own
    weights, and no copy)."""

    def check(self) -> None:
        empty = "an empty string would end every completion"
        self.require(all(self.stop), "stop", empty)
        reason = (
            "training needs top_p = 1: with less, completions come from another distribution than "
            "the one the policy gradient is taken of (evaluation has eval.top_p)"
        )
        self.require(self.top_p == 1.0, "top_p", reason)
