"""Accuracy: whether a completion's answer is right, judged in verifier processes.

Completions are hostile input: a policy finds every reward that is cheaper than being right. So one
answer block counts and several do not, of boxes the last one after the thoughts, an empty answer
never matches, and "4 or 5" is no answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from r1train.answers.clean import is_blank
from r1train.config.rewards import AnswerIn, RewardConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.data.response import boxed, summary
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.rewards.code import is_tested
from r1train.rewards.pool.pool import VerifierPool
from r1train.rewards.probing import probe
from r1train.rewards.verifiers import Verifier

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract_answer(completion: str) -> str | None:
    """The text of the only <answer> block; None where there is none, an empty one or several, or
    where the thoughts go on behind it: then it is one of them."""
    if completion.count("<answer>") != 1 or completion.count("</answer>") != 1:
        return None
    match = _ANSWER.search(completion)
    if match is None or is_blank(match.group(1)) or "</think>" in completion[match.end() :]:
        return None
    return match.group(1).strip()


def extract_boxed(completion: str, prompt: str = "") -> str | None:
    """The text of the last box after the thoughts; None where there is none or an empty one, or
    where the thoughts do not end, whether the completion opens them or the prompt does."""
    found = boxed(summary(completion, prompt))
    return None if found is None or is_blank(found) else found.strip()


def answer_of(sample: Sample, answer_in: AnswerIn) -> str | None:
    """What accuracy judges and votes are cast for, by `rewards.answer_in`; None: no answer."""
    if answer_in == "box":
        return extract_boxed(sample.completion, sample.prompt)
    return extract_answer(sample.completion)


class AccuracyReward(Reward):
    """1 for a right answer, else 0: all or nothing, as R1's rule; None where a problem has none,
    or has test cases that the reward "code" runs.

    The first problems of each source are used to probe its verifier; ConfigError where it credits
    nonsense. An answer whose verifier fails or runs out of time has 0, and is counted.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.pool = VerifierPool(Verifier(problems.sources), config.workers, config.timeout)
        self.left_to_code = "code" in config.functions
        self.answer_in = config.answer_in
        self.warned = False
        try:
            probe(self.pool, problems)
        except BaseException:
            self.close()
            raise

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        answers = [answer_of(sample, self.answer_in) for sample in samples]
        keys = [(answer, id(s.problem)) for answer, s in zip(answers, samples, strict=True)]
        jobs = {
            key: (answer, sample.problem)
            for key, answer, sample in zip(keys, answers, samples, strict=True)
            if answer is not None and self._applies(sample.problem)
        }  # a group often agrees on an answer: each is verified once
        verdicts = dict(zip(jobs, self.pool.run(list(jobs.values())), strict=True))
        outcomes = [verdicts.get(key) for key in keys]
        self._warn(next((o.message for o in outcomes if o and o.failure == "error"), None))
        return Scores(
            values=[
                float(o is not None and o.score >= 1.0) if self._applies(sample.problem) else None
                for o, sample in zip(outcomes, samples, strict=True)
            ],
            errors=sum(o is not None and o.failure == "error" for o in outcomes),
            timeouts=sum(o is not None and o.failure == "timeout" for o in outcomes),
        )

    def close(self) -> None:
        self.pool.__exit__()

    def _applies(self, problem: Problem) -> bool:
        return problem.verifiable and not (self.left_to_code and is_tested(problem))

    def _warn(self, message: str | None) -> None:
        if message is not None and not self.warned:
            self.warned = True
            logging.getLogger("r1train").warning("a verifier failed: %s (counted)", message)
