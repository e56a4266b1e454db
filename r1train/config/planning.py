"""What a plan supposes of things that only a run can tell."""

from __future__ import annotations

from dataclasses import dataclass

from r1train.config.schema import Count, NonNegative, Positive, Section, Share


@dataclass(frozen=True)
class PlanConfig(Section, section="plan"):
    """What `r1train plan` supposes; a run does not read it."""

    prompt_length: Count = 256
    """Tokens of a prompt, on average."""
    completion_length: Count | None = None
    """Tokens of a sampled completion, on average (unset: half of max_completion_length)."""
    demonstration_length: Count | None = None
    """Tokens of a demonstration's completion, on average (unset: as completion_length)."""
    demonstrations: Count = 100_000
    """Demonstrations of an epoch, or pairs of a reward model, where they are files; those of stages
    are as many as these leave at most, unless [stages.plan] says another number."""
    solution_steps: Count = 6
    """Steps of a solution, on average, by which process_reward takes it apart."""
    active: Share = 1.0
    """Share of the groups whose rewards differ: the others cost no update where beta is 0."""
    reward_seconds: NonNegative = 1e-3
    """Seconds of a process to score a completion; rewards.workers of them share the work."""
    price: Positive | None = None
    """Dollars for an hour of a device (unset: those of r1train/plan/devices.toml)."""
