"""Rule-based rewards of DeepSeek-R1-Zero: a right answer, and the think/answer format.

Completions are hostile input: a policy finds every reward that is cheaper than being right. So one
answer block counts and several do not, an empty answer never matches, and "4 or 5" is no answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r1train.config.sections import RewardConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.data.prompts import TAGS
from r1train.rewards.pool.pool import VerifierPool
from r1train.rewards.probing import probe
from r1train.rewards.verifiers import Verifier

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORMAT = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def extract_answer(completion: str) -> str | None:
    """The text of the only <answer> block; None where there is none, an empty one or several."""
    if completion.count("<answer>") != 1 or completion.count("</answer>") != 1:
        return None
    match = _ANSWER.search(completion)
    return (match.group(1).strip() or None) if match else None


def format_reward(completion: str, think_opened: bool = False) -> float:
    """1 for <think>…</think><answer>…</answer>, once each, not empty, with nothing outside, else 0.

    `think_opened` says that the prompt ended in <think>, so that the completion starts inside it.
    """
    text = "<think>" + completion if think_opened else completion
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    match = _FORMAT.fullmatch(text)
    return float(match is not None and all(block.strip() for block in match.groups()))


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of a batch of completions, in their order."""

    total: list[float]
    """Weighted sum of the configured functions."""
    by_name: dict[str, list[float]]
    """"accuracy" and "format", each 0 or 1, configured or not."""
    errors: int
    """Completions whose verifier raised or died; their accuracy is 0."""
    timeouts: int
    """Completions whose verifier ran out of time; their accuracy is 0."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RewardBatch:
        return cls(**state)


class RewardPool:
    """Scores completions, answers in verifier processes. A context manager: start one for a run.

    `problems` is any problem set of the run: the training and held-out sets share their sources.
    Its first problems are used to probe their verifier; ConfigError where it credits nonsense.
    """

    def __init__(
        self, config: RewardConfig, problems: ProblemSet, *, think_opened: bool = False
    ) -> None:
        self.weights = dict(zip(config.functions, config.weights, strict=True))
        self.think_opened = think_opened
        self.pool = VerifierPool(Verifier(problems.sources), config.workers, config.timeout)
        self.warned = False
        try:
            probe(self.pool, problems)
        except BaseException:
            self.pool.__exit__()
            raise

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.__exit__()

    def score(self, completions: Sequence[str], problems: Sequence[Problem]) -> RewardBatch:
        """Rewards of `completions[i]` for `problems[i]`. Accuracy is all or nothing: R1's rule."""
        answers = [extract_answer(completion) for completion in completions]
        keys = [(answer, id(problem)) for answer, problem in zip(answers, problems, strict=True)]
        jobs = {
            key: (answer, problem)
            for key, answer, problem in zip(keys, answers, problems, strict=True)
            if answer is not None
        }  # a group often agrees on an answer: each is verified once
        verdicts = dict(zip(jobs, self.pool.run(list(jobs.values())), strict=True))
        outcomes = [verdicts.get(key) for key in keys]
        self._warn(next((o.message for o in outcomes if o and o.failure == "error"), None))
        by_name = {
            "accuracy": [float(o is not None and o.score >= 1.0) for o in outcomes],
            "format": [format_reward(text, self.think_opened) for text in completions],
        }
        return RewardBatch(
            total=[
                sum(weight * by_name[name][i] for name, weight in self.weights.items())
                for i in range(len(completions))
            ],
            by_name=by_name,
            errors=sum(o is not None and o.failure == "error" for o in outcomes),
            timeouts=sum(o is not None and o.failure == "timeout" for o in outcomes),
        )

    def _warn(self, message: str | None) -> None:
        if message is not None and not self.warned:
            self.warned = True
            logging.getLogger("r1train").warning("a verifier failed: %s (counted)", message)
