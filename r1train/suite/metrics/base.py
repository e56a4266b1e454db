"""What a metric is given, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from r1train.config.sections import Config
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark


@dataclass(frozen=True)
class Response:
    """One completion of a question, and what was found in it."""

    question: Question
    summary: str
    """What follows the chain of thought; all that a judge is shown."""
    answer: str | None
    """What the benchmark's rules extract; None where they find nothing."""


@dataclass(frozen=True)
class Score:
    """What a response is worth."""

    value: float | None
    """In [0, 1]; None where it could not be judged, as when an endpoint failed."""
    detail: dict[str, Any] = field(default_factory=dict)
    """For the file of samples, and for `figures`."""


def with_interval(
    name: str, found: Sequence[float], seen: Sequence[float | None]
) -> dict[str, float]:
    """A figure and the two ends of its interval, `found` by resampling what was `seen`.

    Where all of these are alike, or both ends are the same, resampling shows no spread: then no
    interval is known."""
    value, low, high = found
    if low == high or len(set(seen)) < 2:
        return {name: value}
    return {name: value, f"{name}_low": low, f"{name}_high": high}


class MetricBase(ABC):
    """Scores the responses to a benchmark."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        """Raises ConfigError where something that it needs is missing."""
        self.benchmark, self.config = benchmark, config

    @abstractmethod
    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        """One for each response, in their order."""

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        """What the benchmark reports beside the mean score."""
        return {}
