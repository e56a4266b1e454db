"""Worked solutions to learn from before RL, written by rule and wrong on purpose now and then."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from r1train.config.schema import ConfigError
from r1train.config.sections import SFTConfig
from r1train.data.problems import Problem

Solver = Callable[[Problem, random.Random, bool], tuple[str, str]]


def check_solutions(problems: Iterable[Problem]) -> None:
    """Every problem's task has a solver: said before a model is loaded."""
    for task in dict.fromkeys(problem.task for problem in problems):
        if task not in SOLVERS:
            raise ConfigError(
                f"no worked solutions are known for task '{task}', only for "
                f'{", ".join(SOLVERS)}; leave the supervised phase out with stages = ["grpo"]'
            )


def demonstration(problem: Problem, config: SFTConfig, rng: random.Random) -> str:
    """A completion for the problem, whose answer is right with probability `teacher_accuracy` and
    whose tags are right with probability `teacher_format`."""
    check_solutions([problem])
    slip = rng.random() >= config.teacher_accuracy
    thoughts, answer = SOLVERS[problem.task](problem, rng, slip)
    if rng.random() < config.teacher_format:
        return f"<think>{thoughts}</think><answer>{answer}</answer>"
    return rng.choice(MALFORMED).format(thoughts=thoughts, answer=answer)


def chain_sum(problem: Problem, rng: random.Random, slip: bool) -> tuple[str, str]:
    """Running partial sums: 12+45=57, 57-3=54. A slip is a wrong one, which the next builds on."""
    first, *rest = problem.metadata["expression"].split()
    total, steps = int(first), list(zip(rest[::2], rest[1::2], strict=True))
    wrong = rng.randrange(len(steps)) if slip else -1
    lines = []
    for i, (operator, term) in enumerate(steps):
        result = total + int(term) if operator == "+" else total - int(term)
        if i == wrong:
            result += rng.choice((-10, -2, -1, 1, 2, 10))
        lines.append(f"{total}{operator}{term}={result}")
        total = result
    return "\n".join(lines), str(total)


SOLVERS: dict[str, Solver] = {"chain_sum": chain_sum}

MALFORMED = (
    "<think>{thoughts}<answer>{answer}</answer>",
    "{thoughts}</think><answer>{answer}</answer>",
    "<think>{thoughts}</think>{answer}",
    "{thoughts}\n{answer}",
)
