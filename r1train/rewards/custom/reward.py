"""A user's function as a reward of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby
from math import inf
from typing import Any, Protocol

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError, RunError, shown
from r1train.data.problems import Problem, ProblemSet
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.rewards.custom.function import GIVEN, FunctionFailed, UserFunction
from r1train.rewards.custom.pool import Arguments, Failure, FunctionPool, Outcome

MOST_TIMEOUTS = 4
"""Completions of a batch that may each use up the time limit before the rest is given up."""
TIMEOUT_ADVICE = (
    "; raise rewards.timeout, load what takes long where the file is imported, or call the "
    "function in the trainer (r1train.in_process)"
)


class Caller(Protocol):
    """What calls the function: a pool of processes, or this process."""

    def run(self, calls: Sequence[Arguments], most_timeouts: float = ...) -> list[Outcome]: ...

    def close(self) -> None: ...


class CustomReward(Reward):
    """Calls the function with a batch, split among its processes.

    Where a call fails, its completions are tried one by one: what breaks the function costs its own
    reward and no other. A function that fails for all of its first batch is broken itself, and ends
    the run with RunError; later failures are None, are counted, and are warned of once.
    """

    def __init__(self, function: UserFunction, config: RewardConfig, problems: ProblemSet) -> None:
        self.function = function
        self.columns = _columns(function, problems)
        self.caller: Caller
        if function.in_process:
            self.shares, self.caller = 1, InProcess(function)
        else:
            self.shares = config.workers
            self.caller = FunctionPool(function.spec, config.workers, config.timeout)
        self.worked = self.warned = False

    def close(self) -> None:
        self.caller.close()

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        values: list[float | None] = [None] * len(samples)
        failed = self._call(samples, split(samples, self.shares), values)
        alone = [[row] for rows, _ in failed if len(rows) > 1 for row in rows]
        failed = [failure for failure in failed if len(failure[0]) == 1]
        failed += self._call(samples, alone, values, MOST_TIMEOUTS)
        if failed:
            self._tell(samples, failed)
        self.worked = True
        kinds = [failure.kind for _, failure in failed]
        return Scores(values, kinds.count("error"), kinds.count("timeout"))

    def _call(
        self,
        samples: Sequence[Sample],
        shares: Sequence[Sequence[int]],
        values: list[float | None],
        most_timeouts: float = inf,
    ) -> list[tuple[Sequence[int], Failure]]:
        """Fills `values` with what the function says of each share of the rows.

        Returns the shares for which it failed.
        """
        calls = [arguments([samples[row] for row in rows], self.columns) for rows in shares]
        failed = []
        for rows, outcome in zip(shares, self.caller.run(calls, most_timeouts), strict=True):
            if isinstance(outcome, Failure):
                failed.append((rows, outcome))
                continue
            for row, value in zip(rows, outcome, strict=True):
                values[row] = value
        return failed

    def _tell(
        self, samples: Sequence[Sample], failed: Sequence[tuple[Sequence[int], Failure]]
    ) -> None:
        (row, *_), failure = failed[0]
        text = (
            f"{failure.message}; so for {len(failed)} of {len(samples)} completions, such as "
            f"{shown(samples[row].completion)} of {samples[row].problem.where}"
        )
        if len(failed) == len(samples) and not self.worked:
            raise RunError(text + TIMEOUT_ADVICE * (failure.kind == "timeout"))
        if not self.warned:
            self.warned = True
            counted = f"rewards/{self.function.name}/errors and /timeouts"
            logging.getLogger("r1train").warning("%s (counted in %s)", text, counted)


class InProcess:
    """Calls the function where the trainer runs, without a time limit."""

    def __init__(self, function: UserFunction) -> None:
        self.function = function

    def run(self, calls: Sequence[Arguments], most_timeouts: float = inf) -> list[Outcome]:
        return [self._outcome(call) for call in calls]

    def close(self) -> None:
        """There is nothing to end."""

    def _outcome(self, call: Arguments) -> Outcome:
        try:
            return self.function(deepcopy(call))  # it may change what problems hold
        except FunctionFailed as failure:
            return Failure("error", str(failure))


def split(samples: Sequence[Sample], shares: int) -> list[list[int]]:
    """Rows of at most so many shares of about one size; completions of a problem stay together."""
    found: list[list[int]] = []
    for _, group in groupby(range(len(samples)), key=lambda row: id(samples[row].problem)):
        if not found or len(found[-1]) * shares >= len(samples):
            found.append([])
        found[-1] += group
    return found


def arguments(samples: Sequence[Sample], columns: Sequence[str] = ()) -> Arguments:
    """What the function is called with: texts, tokens, and the fields of the problems.

    A field that a problem does not have is None; so are `columns`, which are there in any case.
    """
    rows = [fields(sample.problem) for sample in samples]
    names = dict.fromkeys(columns) | {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names} | {
        "prompts": [sample.prompt for sample in samples],
        "completions": [sample.completion for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
    }


def fields(problem: Problem) -> dict[str, Any]:
    """The columns of a problem: what its source says of it, its question and its answer.

    The answer is the reference; where the source has none, it may have a column of that name.
    """
    own = {"answer": "", **problem.metadata, **problem.columns}
    answer = {"answer": problem.answer} if problem.verifiable else {}
    return own | {"question": problem.question} | answer


def _columns(function: UserFunction, problems: ProblemSet) -> list[str]:
    """The columns that the function needs; ConfigError where no problem has one."""
    _, needed = function.parameters()
    known = set(GIVEN)
    for _, problem in problems.as_they_lie():  # of a large file, as few as will do
        if known.issuperset(needed):
            break
        known.update(fields(problem))
    for name in needed:
        if name not in known:
            raise ConfigError(
                f"rewards.functions: {function.spec} asks for {name!r}, a column that no problem "
                f"has; there are {', '.join(sorted(known))}"
            )
    return [name for name in needed if name not in GIVEN]
