"""How published benchmarks are asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1train.config.endpoint import EndpointConfig
from r1train.config.schema import Count, NonNegative, Section, Share


@dataclass(frozen=True)
class SuiteJudgeConfig(EndpointConfig, section="suite.judge"):
    """Who judges what no rule can: SimpleQA, AlpacaEval 2 and ArenaHard (R1: GPT-4-Turbo-1106)."""


@dataclass(frozen=True)
class SuiteConfig(Section, section="suite"):
    """Published benchmarks, `r1train eval MODEL --suite r1` (R1: temperature 0.6, top-p 0.95)."""

    k: Count | None = None
    """Completions of each question (unset: the benchmark's own, as R1 was measured: 1 to 64)."""
    temperature: NonNegative = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Share = 0.95
    """Probability mass that is sampled from."""
    max_tokens: Count | None = None
    """Tokens after which a completion is cut off (unset: R1's 32,768, or what the model has
    positions for)."""
    limit: Count | None = None
    """Questions of each benchmark, drawn by a fixed seed (unset: all)."""
    check_training_data: bool = True
    """Whether a run's training data is looked through for ten words in a row of a question."""
    confidence: Share = 0.95
    """Level of the intervals."""
    judge: SuiteJudgeConfig = field(default_factory=SuiteJudgeConfig)

    def check(self) -> None:
        self.require(0 < self.confidence < 1, "confidence", "expected a value > 0 and < 1")
        self.require(self.top_p > 0, "top_p", "expected a value > 0")
