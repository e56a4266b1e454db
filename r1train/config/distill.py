"""On-policy distillation: a student learns from a teacher on what it says itself."""

from __future__ import annotations

from dataclasses import dataclass

from r1train.config.schema import Count, CountOrZero
from r1train.config.training import TrainingConfig


@dataclass(frozen=True)
class DistillConfig(TrainingConfig, section="distill"):
    """On-policy distillation: the reverse KL divergence from a teacher, on the student's own tokens
    (GKD, arXiv 2306.13649: TRL's GKDConfig with lmbda = 1 and beta = 1)."""

    teacher: str | None = None
    """The model to become like, of the same vocabulary: a HuggingFace folder, "stage:" and the name
    of a stage before, or "preset:" and a name."""
    max_steps: Count = 100
    """Rollout-and-update steps."""
    prompts_per_step: Count = 32
    """Distinct prompts in a rollout."""
    num_generations: Count = 4
    """Completions of each prompt."""
    num_minibatches: Count = 1
    """Optimizer steps a rollout is split into (TRL's steps_per_generation)."""
    warmup_steps: CountOrZero = 0
    """Steps over which the rate rises from 0."""
    eval_steps: CountOrZero = 0
    """Steps between held-out evaluations; 0: only before and after."""

    def check(self) -> None:
        rollout = self.prompts_per_step * self.num_generations
        split = f"a rollout has {rollout} completions, fewer than the minibatches asked for"
        self.require(self.num_minibatches <= rollout, "num_minibatches", split)
