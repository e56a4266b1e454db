"""Search at the time of a test, with the help of a process reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1train.config.schema import Count, NonNegative, Section


@dataclass(frozen=True)
class SearchConfig(Section, section="search"):
    """Ways to spend the same number of generated tokens on a problem (R1, 4.2). Temperature,
    filters, length and number of problems are those of [eval]."""

    value_model: str | None = None
    """Process reward model: a HuggingFace token-classification folder with one label, or
    "stage:NAME" of a process_reward stage."""
    num_generations: Count = 16
    """Solutions sampled of each problem. Their tokens are the budget of its tree search."""
    aggregate: Literal["min", "prod", "last"] = "min"
    """How the values of a solution's steps are one score: the least (Math-Shepherd), their product
    ("Let's Verify Step by Step"), or that of the last step."""
    width: Count = 4
    """Next steps that tree search samples when it expands a node."""
    c_puct: NonNegative = 0.5
    """Weight of exploration in PUCT (AlphaZero), whose values are scaled to those in the tree."""
