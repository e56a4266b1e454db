"""Process reward models: what they are trained on, and how."""

from __future__ import annotations

from dataclasses import dataclass

from r1train.config.schema import Count, Positive, Share
from r1train.config.training import TrainingConfig


@dataclass(frozen=True)
class ProcessRewardConfig(TrainingConfig, section="process_reward"):
    """A value for every step of a solution, learnt from rollouts (Math-Shepherd, arXiv
    2312.08935): the share of continuations of the step that reach the right answer."""

    num_prompts: Count = 1024
    """Training problems whose solutions are taken apart (all, where there are fewer)."""
    num_generations: Count = 8
    """Solutions that the policy samples of each of them."""
    num_rollouts: Count = 8
    """Continuations of each step, by which its value is estimated (Math-Shepherd: 8)."""
    num_train_epochs: Count = 1
    """How often the solutions are gone through."""
    batch_size: Count = 128
    """Solutions an update."""
    learning_rate: Positive = 1e-5
    """Peak learning rate."""
    warmup_ratio: Share = 0.05
    """Share of the updates over which the rate rises from 0."""
