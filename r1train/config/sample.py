"""How many completions a stage samples to be kept."""

from __future__ import annotations

from dataclasses import dataclass

from r1train.config.schema import Count, Section, Size


@dataclass(frozen=True)
class SampleConfig(Section, section="sample"):
    """Completions of training problems, sampled as [rollout] says and scored as [rewards] does."""

    num_prompts: Size | None = None
    """How many training problems are answered, each once (unset: all)."""
    num_generations: Count = 4
    """Completions of each problem (TRL's name)."""
