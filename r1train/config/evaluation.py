"""Held-out evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r1train.config.schema import Count, CountOrZero, NonNegative, Section, Share, accept


@dataclass(frozen=True)
class EvalConfig(Section, section="eval"):
    """Held-out evaluation (R1: temperature 0.6, top-p 0.95, k from 4 to 64)."""

    k: Count = 4
    """Completions of each problem: pass@1 is their mean, cons@k their majority."""
    temperature: NonNegative = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Share = 0.95
    """Probability mass that is sampled from."""
    top_k: CountOrZero = 0
    """How many of the most probable tokens are sampled from; 0: all."""
    min_p: Share = 0.0
    """Least probability of a token, as a share of the most probable one's; 0: any."""
    max_completion_length: Count | None = None
    """Tokens after which a completion is cut off (unset: as in training)."""
    limit: Count | None = None
    """How many held-out problems are used (unset: all)."""
    by: tuple[str, ...] = ()
    """Fields of problems, such as "level", by whose values pass@1 and the mean length are told
    apart too: "pass@1/level=3"."""
    num_fewshot: CountOrZero = 0
    """Training problems that stand solved before every question (lm-evaluation-harness's name);
    needs tasks whose worked solutions are known."""
    at_least: dict[str, Any] = field(default_factory=dict)
    """Figures that the last evaluation of a stage has to reach, such as {"cons@16" = 0.6}: else it
    fails, and what needs it is not begun."""
    confidence: Share = 0.95
    """Level of the confidence intervals."""

    def check(self) -> None:
        self.require(0 < self.confidence < 1, "confidence", "expected a value > 0 and < 1")
        self.require(self.top_p > 0, "top_p", "expected a value > 0")
        for name, least in self.at_least.items():
            self.at_least[name] = accept(least, float, self.key(f"at_least.{name}"))
