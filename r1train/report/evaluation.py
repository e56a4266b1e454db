"""Figures of an evaluation, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf, isnan, nan
from statistics import NormalDist, fmean, variance
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class EvalResult:
    """Figures of one evaluation; shares are in [0, 1], intervals are Wilson's."""

    pass_at_1: float
    """Mean accuracy over all completions of the problems that can be verified (R1's pass@1), NaN
    where none can."""
    pass_at_1_ci: Interval
    cons_at_k: float
    """Share of these problems whose most frequent answer is right; the first seen wins a tie.

    Answers are counted together where `verify` finds them equal, and right ones always are."""
    cons_at_k_ci: Interval
    k: int
    """Completions of each problem."""
    n: int
    """Number of problems."""
    verifiable: int
    """Of these, whose answers can be verified."""
    mean_length: float
    """Tokens of a completion."""
    truncated: float
    """Share of completions cut off at the length limit."""
    format_rate: float
    """Share of completions in the think/answer format."""
    errors: int
    """Completions whose verifier failed."""
    timeouts: int
    """Completions whose verifier ran out of time."""
    samples: tuple[dict[str, Any], ...] = field(repr=False)
    """The first completion of each problem, as samples.jsonl keeps it."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Mean of each further reward where it applies, NaN where it never does."""

    groups: dict[str, float] = field(default_factory=dict)
    """Figures of the problems that have something in common, as "pass@1/level=3"."""

    per_problem: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)
    """The means that pass@1, cons@k and rewards are means of, by a hash of what the problem asks:
    so two evaluations of the same problems can be compared in pairs."""

    def state_dict(self) -> dict[str, Any]:
        """All of it but the samples, which are logged."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EvalResult:
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in state.items()
        }
        return cls(**values, samples=())

    def as_dict(self) -> dict[str, Any]:
        """For summary.json: the figures without the samples, and NaN as None; without pass@1 and
        cons@k where no problem can be verified."""
        judged = {
            "pass@1": self.pass_at_1,
            "pass@1_ci": list(self.pass_at_1_ci),
            f"cons@{self.k}": self.cons_at_k,
            f"cons@{self.k}_ci": list(self.cons_at_k_ci),
        }
        return (judged if self.verifiable else {}) | {
            "format": self.format_rate,
            "mean_length": self.mean_length,
            "truncated": self.truncated,
            "problems": self.n,
            "verifiable": self.verifiable,
            "completions_per_problem": self.k,
            "errors": self.errors,
            "timeouts": self.timeouts,
            **{f"rewards/{k}": None if isnan(v) else v for k, v in self.rewards.items()},
            **self.groups,
        }


def interval(scores: Sequence[float], confidence: float, k: int = 1) -> Interval:
    """Wilson's score interval for the mean of per-problem `scores`, each a mean of k in [0, 1].

    k completions of one problem say less than k problems: n is the effective sample size of such
    clusters, p(1 - p) / Var(mean) (Korn and Graubard 1998), between the problems and completions.
    Without any, both ends are NaN.
    """
    if not scores:
        return nan, nan
    mean, count = fmean(scores), float(len(scores))
    if count > 1 and 0 < mean < 1:
        spread = variance(scores) / count
        effective = mean * (1 - mean) / spread if spread else inf
        count = min(max(effective, count), count * k)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (mean * (1 - mean) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
