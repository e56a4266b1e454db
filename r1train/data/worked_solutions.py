"""Worked solutions to learn from before RL, written by rule and wrong on purpose now and then."""

from __future__ import annotations

import random
from collections.abc import Callable
from inspect import signature
from typing import Any

from transformers import PreTrainedTokenizerBase

from r1train.config.schema import ConfigError, Share, accept, nearest
from r1train.config.sft import SFTConfig
from r1train.config.task import DatasetConfig
from r1train.data.demonstrations import Demonstration
from r1train.data.encode import encode_prompts
from r1train.data.epochs import draw
from r1train.data.problems import Problem, ProblemSet
from r1train.data.tasks import bilingual_reply, bilingual_sum
from r1train.seeds import derive_seed

WELL_FORMED = "<think>{thoughts}</think><answer>{answer}</answer>"
MALFORMED = (
    "<think>{thoughts}<answer>{answer}</answer>",
    "{thoughts}</think><answer>{answer}</answer>",
    "<think>{thoughts}</think>{answer}",
    "{thoughts}\n{answer}",
)

Solver = Callable[..., tuple[str, str]]
"""Thoughts and answer of (problem, rng, slip), and of what `sft.teacher_params` has by name."""


class WorkedSolutions:
    """Demonstrations of problems that have a solver: new ones at every step, or one for each of the
    first `teacher_problems`.

    One may be of several problems after each other, all of the same author: their tags are right in
    all of them or wrong in the same way.
    """

    def __init__(
        self,
        problems: ProblemSet,
        config: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str,
        seed: int,
    ) -> None:
        check_solutions(problems.sources, config)
        self.problems, self.config, self.tokenizer = problems, config, tokenizer
        self.template, self.seed, self.steps = template, seed, config.steps()
        self.kept = min(config.teacher_problems or 0, len(problems))

    def batch(self, step: int) -> list[Demonstration]:
        if self.kept:
            rows = draw(range(self.kept), self.config.batch_size, step + 1, self.seed)
            rngs = [random.Random(derive_seed(self.seed, "kept", row)) for row in rows]
            return [
                self._made(self.problems[row], rng) for row, rng in zip(rows, rngs, strict=True)
            ]
        rng = random.Random(derive_seed(self.seed, "sft", step))
        chosen = [rng.choice(self.problems) for _ in range(self.config.batch_size)]
        return [self._made(problem, rng) for problem in chosen]

    def _made(self, problem: Problem, rng: random.Random) -> Demonstration:
        """A demonstration of the problem and of some after it."""
        shots, end = self.config.teacher_shots, str(self.tokenizer.eos_token)
        more = [rng.choice(self.problems) for _ in range(rng.randint(0, shots))] if shots else []
        solved = [solve(one, self.config, rng) for one in (problem, *more)]
        style = draw_style(self.config, rng)
        texts = [
            style.format(thoughts=thoughts, answer=answer) + end for thoughts, answer in solved
        ]
        solutions = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompt, *prompts = encode_prompts(self.tokenizer, [problem, *more], self.template)
        completion, learned = [*solutions[0]], [True] * len(solutions[0])
        for question, solution in zip(prompts, solutions[1:], strict=True):
            completion += [*question, *solution]
            learned += [False] * len(question) + [True] * len(solution)
        return Demonstration(problem.where, prompt, completion, learned)


def check_solutions(sources: tuple[DatasetConfig, ...], config: SFTConfig) -> None:
    """Every source has a solver that knows what it is told: said before a model is loaded."""
    for task in [str(source.name or source.path) for source in sources]:
        if task not in SOLVERS:
            raise ConfigError(
                f"no worked solutions are known for task '{task}', only for "
                f"{', '.join(SOLVERS)}: give demonstrations of your own ([[sft.datasets]]), or "
                'leave the supervised phase out with stages = ["grpo"]'
            )
    for task, params in config.teacher_params.items():
        key = f"sft.teacher_params.{task}"
        if task not in SOLVERS:
            raise ConfigError(f"{key}: no such solver: {nearest(task, SOLVERS)}")
        options = signature(SOLVERS[task]).parameters.values()
        known = [option.name for option in options if option.kind is option.KEYWORD_ONLY]
        for name, value in accept(params, dict[str, Any], key).items():
            if name not in known:
                raise ConfigError(f"{key}.{name}: {nearest(name, known)}")
            accept(value, Share, f"{key}.{name}")


def worked_solution(problem: Problem, config: SFTConfig, rng: random.Random) -> str:
    """A completion for the problem."""
    thoughts, answer = solve(problem, config, rng)
    return draw_style(config, rng).format(thoughts=thoughts, answer=answer)


def solve(problem: Problem, config: SFTConfig, rng: random.Random) -> tuple[str, str]:
    """Thoughts and answer, without a slip with probability `teacher_accuracy`."""
    slip = rng.random() >= config.teacher_accuracy
    params = config.teacher_params.get(problem.task, {})
    return SOLVERS[problem.task](problem, rng, slip, **params)


def draw_style(config: SFTConfig, rng: random.Random) -> str:
    """Where an author puts the tags: right with probability `teacher_format`."""
    return WELL_FORMED if rng.random() < config.teacher_format else rng.choice(MALFORMED)


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


SOLVERS: dict[str, Solver] = {
    "chain_sum": chain_sum,
    "bilingual_sum": bilingual_sum.solve,
    "bilingual_reply": bilingual_reply.solve,
}
