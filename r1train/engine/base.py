"""What every rollout engine returns, and what it refuses to sample from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from r1train.config.schema import RunError


class NotANumber(RunError):
    """The model gives no distribution to sample from: its logits hold NaN or infinity."""


@dataclass(frozen=True)
class Rollout:
    """Sampled completions, in the order of the prompts."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    """Tokens sampled, the end-of-sequence token included where there is one."""
    logprobs: list[Tensor]
    """Log-probability of each sampled token under the distribution it was drawn from, float32."""
    finished: list[bool]
    """False where the length limit cut the completion off."""
    routing: list[Tensor] | None = None
    """Where a mixture of experts sent each sequence (`r1train.model.routing`); else None."""
