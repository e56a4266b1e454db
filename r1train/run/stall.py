"""A run that cannot learn says so: without a gradient every step costs time and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

PATIENCE = 5  # steps in a row; one or two without a gradient happen


class Stall:
    """Watches the metrics of steps and warns of runs of them from which nothing is learned.

    A warning comes after `PATIENCE` steps, and again when their number has doubled.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}  # the last of each kind, for the summary
        self.steps: dict[str, int] = {}
        self.next: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"said": self.said, "steps": self.steps, "next": self.next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.said, self.steps = dict(state["said"]), dict(state["steps"])
        self.next = dict(state["next"])

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of step `step`, of either stage."""
        constant = metrics.get("frac_reward_zero_std", 0.0) >= 1.0
        still = metrics.get("grad_norm") == 0.0
        self._count("constant", constant, step, metrics)
        self._count("gradient", still and not constant, step, metrics)

    def _count(self, kind: str, holds: bool, step: int, metrics: Mapping[str, float]) -> None:
        if not holds:
            self.steps.pop(kind, None)
            self.next.pop(kind, None)
            return
        count = self.steps[kind] = self.steps.get(kind, 0) + 1
        if count < self.next.get(kind, PATIENCE):
            return
        self.next[kind] = 2 * count
        reason = constant_reason(metrics) if kind == "constant" else EMPTY_GRADIENT
        text = f"step {step}: nothing was learned in the last {count} steps: {reason}"
        self.said[kind] = text
        logging.getLogger("r1train").warning("%s", text)


EMPTY_GRADIENT = (
    "the gradient is exactly 0: parameters that the loss depends on are frozen, or the loss is cut "
    "off everywhere (see epsilon and delta)"
)


def constant_reason(metrics: Mapping[str, float]) -> str:
    """Why the completions of every group have the same reward, as far as the figures say."""
    reward, clipped = metrics.get("reward", 0.0), metrics.get("completions/clipped_ratio", 0.0)
    failures = ("rewards/accuracy/errors", "rewards/accuracy/timeouts")
    failed = sum(metrics.get(name, 0.0) for name in failures)
    if reward != 0.0:
        return (
            f"the completions of every group have equal rewards (mean {reward:.3g}): the problems "
            "are solved or out of reach, or completions do not differ; change the problems, or "
            "raise grpo.num_generations or rollout.temperature"
        )
    causes = []
    if clipped > 0.5:
        causes.append(
            f"{clipped:.0%} of the completions are cut off (raise rollout.max_completion_length)"
        )
    if failed:
        causes.append(
            f"{failed:.0f} verifications of a step fail (see rewards/accuracy/errors and /timeouts)"
        )
    causes.append(
        "the model may not know the <think> and <answer> format (a supervised stage, or a prompt "
        "that asks for it), or the problems are too hard"
    )
    return f"every reward is 0: {'; '.join(causes)}"
