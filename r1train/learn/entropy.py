"""A bonus for entropy whose weight follows the entropy (Skywork-OR1, arXiv 2505.22312, MAGIC)."""

from __future__ import annotations

from typing import Any

from r1train.config.grpo import GRPOConfig


class EntropyBonus:
    """The weight of the bonus: `entropy_coef` throughout, or one that keeps up `target_entropy`.

    With a target, c rises by `entropy_coef_step` after an update whose entropy was below it, and
    falls after one above, within [0, max_entropy_coef]; the bonus has that weight while the entropy
    last seen is at most the target, and none above it. The entropy is that of the update before.
    """

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.rising = config.entropy_coef
        self.last: float | None = None

    @property
    def weight(self) -> float:
        """Of the next update."""
        target = self.config.target_entropy
        if target is None:
            return self.config.entropy_coef
        return self.rising if self.last is not None and self.last <= target else 0.0

    def observe(self, entropy: float) -> None:
        """The mean entropy of a token in an update."""
        target, config = self.config.target_entropy, self.config
        self.last = entropy
        if target is not None:
            step = config.entropy_coef_step if entropy < target else -config.entropy_coef_step
            self.rising = min(max(self.rising + step, 0.0), config.max_entropy_coef)

    def state_dict(self) -> dict[str, Any]:
        return {"rising": self.rising, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rising, self.last = state["rising"], state["last"]
