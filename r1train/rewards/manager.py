"""All rewards of a run: what each says of a batch, and their weighted sum."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError, shown
from r1train.data.problems import ProblemSet
from r1train.data.samples import Sample
from r1train.rewards.accuracy import answer_of
from r1train.rewards.base import Reward, RewardBatch
from r1train.rewards.registry import BUILT_IN, find_reward

EVALUATED = ("accuracy", "format")
"""What held-out evaluation needs, configured or not."""


class RewardManager:
    """Scores samples by the functions of `config`. A context manager: start one for a run.

    Raises ConfigError where a function is unknown, cannot be imported, or cannot judge `problems`,
    which is any problem set of the run.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.answer_in = config.answer_in
        found = [find_reward(function) for function in config.functions]
        weights = config.weights or [1.0] * len(found)
        self.weights = {name: weight for (name, _), weight in zip(found, weights, strict=True)}
        self._check_names([name for name, _ in found], config)
        self.rewards: dict[str, Reward] = {}
        self.warned = False
        needed = {name: BUILT_IN[name] for name in EVALUATED} | dict(found)
        try:
            for name, factory in needed.items():
                self.rewards[name] = factory(config, problems)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RewardManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for reward in self.rewards.values():
            reward.close()

    def score(self, samples: Sequence[Sample], also: Sequence[str] = ()) -> RewardBatch:
        """Rewards of the samples by the configured functions, and by `also`, which do not count.

        A sample to which no configured function applies has the mean of its problem's others: so
        it moves no baseline, and its own advantage is 0. Where all are such, they have 0.
        """
        names = dict.fromkeys((*self.weights, *also))
        scores = {name: self.rewards[name](samples) for name in names}
        by_name = {name: score.values for name, score in scores.items()}
        return RewardBatch(
            total=self._totals(samples, by_name),
            by_name=by_name,
            errors={name: score.errors for name, score in scores.items()},
            timeouts={name: score.timeouts for name, score in scores.items()},
        )

    def answers(self, samples: Sequence[Sample]) -> list[str | None]:
        """The answer of each, which accuracy judges; None where there is none."""
        return [answer_of(sample, self.answer_in) for sample in samples]

    def _totals(
        self, samples: Sequence[Sample], by_name: Mapping[str, Sequence[float | None]]
    ) -> list[float]:
        totals: list[float | None] = []
        known = defaultdict[int, list[float]](list)
        for i, sample in enumerate(samples):
            values = [(weight, by_name[name][i]) for name, weight in self.weights.items()]
            parts = [weight * value for weight, value in values if value is not None]
            totals.append(sum(parts) if parts else None)
            if parts:
                known[id(sample.problem)].append(sum(parts))
            else:
                self._warn(sample)
        return [
            _mean(known[id(sample.problem)]) if total is None else total
            for sample, total in zip(samples, totals, strict=True)
        ]

    def _warn(self, sample: Sample) -> None:
        if self.warned:
            return
        self.warned = True
        logging.getLogger("r1train").warning(
            "no reward function applies to a completion of %s, which therefore teaches nothing "
            "(rewards/*/none counts such): %s",
            sample.problem.where,
            shown(sample.completion),
        )

    @staticmethod
    def _check_names(names: Sequence[str], config: RewardConfig) -> None:
        for name, function in zip(names, config.functions, strict=True):
            if names.count(name) > 1 or (name in BUILT_IN and name != function):
                raise ConfigError(
                    f"rewards.functions: {shown(function)}: another function has the name "
                    f"{name!r}, by which its figures are logged: rename one"
                )


def _mean(values: Sequence[float]) -> float:
    """The mean, within the values: rounding must not part it from values that are all equal."""
    return min(max(fmean(values), min(values)), max(values)) if values else 0.0
