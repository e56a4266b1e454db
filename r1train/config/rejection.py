"""Rejection sampling: which completions are good enough to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r1train.config.sample import SampleConfig
from r1train.config.schema import Count, CountOrZero, Share, shown
from r1train.config.sft import DemonstrationsConfig

ALWAYS = {"accuracy": 1.0, "format": 1.0}


@dataclass(frozen=True)
class RejectionConfig(SampleConfig, section="rejection"):
    """Which of the sampled completions are kept, and what general data is mixed with them."""

    min_rewards: dict[str, Any] = field(default_factory=dict)
    """Least reward by name, for each reward where it applies: `accuracy` and `format`, which are 1
    unless given, and those of `rewards.functions`, such as `language`, or a judge of answers that
    no rule verifies."""
    max_paragraph_length: CountOrZero = 2000
    """Characters of the longest paragraph of thoughts, which a line break ends (R1 drops "long
    paragraphs" and gives no number); 0: any."""
    drop_code_blocks: bool = True
    """Whether thoughts with a fenced block of code are dropped (R1: yes; the answer may have
    some)."""
    max_similarity: Share = 0.8
    """Two kept completions of a problem have at most so much in common: the Jaccard index of their
    runs of five tokens; 1: only what is the same token by token is dropped."""
    keep: Count | None = None
    """Completions of a problem that are kept at most, drawn at random (unset: all)."""
    mix: tuple[DemonstrationsConfig, ...] = ()
    """Demonstrations of other kinds that are put beside those kept (R1: writing, questions of
    fact, translation), each file by its weight."""
    mix_share: Share = 0.25
    """Their share of all that the stage leaves (R1: 200k of 800k)."""

    def check(self) -> None:
        object.__setattr__(self, "min_rewards", {**ALWAYS, **self.min_rewards})
        for name, least in self.min_rewards.items():
            number = isinstance(least, int | float) and not isinstance(least, bool)
            self.require(number, "min_rewards", f"{name} = {shown(least)}: expected a number")
        self.require(self.mix_share < 1.0, "mix_share", "expected a value < 1")
