"""A verifier that credits nonsense is found before a policy finds it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from r1train.config.schema import ConfigError
from r1train.data.problems import Problem, ProblemSet
from r1train.rewards.pool.pool import VerifierPool
from r1train.verify import equivalent

PROBLEMS_OF_A_SOURCE = 3
NONSENSE = ("0", "1", "-1", "nan", "inf", "None", "[]", "{}", "()", "?", "banana", "lambda: 0")
"""Answers to anything: wrong wherever the reference does not say just that."""
SPOILED = ("{} vs 1", "not {}", "{} is wrong", "{}, 1", "1, {}", "{}\n1", "banana {}")
"""What makes a right answer wrong, or one of several."""


def probe(pool: VerifierPool, problems: ProblemSet) -> None:
    """Raise ConfigError, with the example, where a reasoning-gym source credits nonsense.

    The first problems of each source are tried, in the pool's processes and under its time limit;
    a source is given up where an answer runs out of time.
    """
    for source, dataset in enumerate(problems.sources):
        if dataset.name is None:
            continue  # a JSONL file's answers go to `verify`
        own = (one for one in problems if one.source == source and one.verifiable)
        for problem in islice(own, PROBLEMS_OF_A_SOURCE):
            answers = list(nonsense(problem))
            outcomes = pool.run([(answer, problem) for answer in answers])
            for answer, outcome in zip(answers, outcomes, strict=True):
                if outcome.score >= 1.0:
                    raise ConfigError(_refusal(source, dataset.name, answer, problem))
            if any(outcome.failure == "timeout" for outcome in outcomes):
                break


def nonsense(problem: Problem) -> Iterable[str]:
    """Answers that cannot be right: of those that are no answer to anything, and spoiled ones."""
    reference = problem.answer
    yield from (text for text in NONSENSE if not (reference and equivalent(text, reference)))
    if reference:
        yield from (text.replace("{}", reference) for text in SPOILED)


def _refusal(source: int, name: str, answer: str, problem: Problem) -> str:
    return (
        f"task.datasets[{source}] ({name}): its verifier gives full credit to the answer "
        f"{answer!r}, where the reference is {problem.answer!r} and the question "
        f"{problem.question[:200]!r}; a policy would learn that answer, so take this dataset out, "
        "or give its problems as a JSONL file with reference answers"
    )
