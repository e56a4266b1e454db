"""What a reward is, and what the rewards of a batch are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from r1train.config.rewards import RewardConfig
from r1train.data.problems import ProblemSet
from r1train.data.samples import Sample


@dataclass(frozen=True)
class Scores:
    """What one reward says of a batch of samples, in their order."""

    values: list[float | None]
    """None where the reward does not apply to a sample, or could not be computed."""
    errors: int = 0
    """Samples for which it raised, or whose process died."""
    timeouts: int = 0
    """Samples for which it ran out of time."""


class Reward(ABC):
    """A rule, a model or a user's function that says what completions are worth.

    `r1train.rewards.registry` makes one from the settings of a run and any of its problem sets:
    the training and held-out sets share their sources. It lives as long as the run.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:  # noqa: B027 (optional)
        """Raises ConfigError where the reward cannot judge such problems."""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value for each sample. Completions of one problem are adjacent."""

    def close(self) -> None:  # noqa: B027 (optional)
        """End the processes that it has started, if any."""


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of a batch of samples, in their order."""

    total: list[float]
    """Weighted sum of the configured functions that apply."""
    by_name: dict[str, list[float | None]]
    """The values of every function that was computed; None where it does not apply."""
    errors: dict[str, int]
    """Samples for which each function failed."""
    timeouts: dict[str, int]
    """Samples for which each function ran out of time."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data, to go on from in another process."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RewardBatch:
        """The rewards of a `state_dict`."""
        return cls(**state)

    def metrics(self) -> dict[str, float]:
        """What a step logs: `reward`, and for each function its mean and spread where it applies
        (NaN where it never does), the share of samples to which it does not, and its failures."""
        figures = {"reward": fmean(self.total)}
        for name, values in self.by_name.items():
            known = [value for value in values if value is not None]
            mean = fmean(known) if known else math.nan
            squares = math.fsum((value - mean) ** 2 for value in known)
            figures |= {
                f"rewards/{name}": mean,
                f"rewards/{name}/std": math.sqrt(squares / max(1, len(known) - 1)),
                f"rewards/{name}/none": 1 - len(known) / len(values),
                f"rewards/{name}/errors": self.errors[name],
                f"rewards/{name}/timeouts": self.timeouts[name],
            }
        return figures
