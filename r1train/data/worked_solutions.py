"""Worked solutions to learn from before RL, written by rule and wrong on purpose now and then."""

from __future__ import annotations

import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.config.sft import SFTConfig
from r1train.config.task import DatasetConfig
from r1train.data.demonstrations import Demonstration
from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem, ProblemSet
from r1train.seeds import derive_seed

Solver = Callable[[Problem, random.Random, bool], tuple[str, str]]


class WorkedSolutions:
    """Demonstrations of problems that have a solver, new ones at every step."""

    def __init__(
        self,
        problems: ProblemSet,
        config: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str,
        seed: int,
    ) -> None:
        check_solutions(problems.sources)
        self.problems, self.config, self.tokenizer = problems, config, tokenizer
        self.template, self.seed, self.steps = template, seed, config.steps()

    def batch(self, step: int) -> list[Demonstration]:
        rng = random.Random(derive_seed(self.seed, "sft", step))
        chosen = [rng.choice(self.problems) for _ in range(self.config.batch_size)]
        prompts = encode_prompts(self.tokenizer, chosen, self.template)
        end = self.tokenizer.eos_token
        texts = [worked_solution(problem, self.config, rng) + end for problem in chosen]
        completions = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            Demonstration(problem.where, prompt, completion, [True] * len(completion))
            for problem, prompt, completion in zip(chosen, prompts, completions, strict=True)
        ]


def check_solutions(sources: tuple[DatasetConfig, ...]) -> None:
    """Every source has a solver: said before a model is loaded."""
    for task in [source.name or source.path for source in sources]:
        if task not in SOLVERS:
            raise ConfigError(
                f"no worked solutions are known for task '{task}', only for "
                f"{', '.join(SOLVERS)}: give demonstrations of your own ([[sft.datasets]]), or "
                'leave the supervised phase out with stages = ["grpo"]'
            )


def worked_solution(problem: Problem, config: SFTConfig, rng: random.Random) -> str:
    """A completion for the problem, whose answer is right with probability `teacher_accuracy` and
    whose tags are right with probability `teacher_format`."""
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
