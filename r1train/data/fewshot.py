"""Questions after others that are solved: few-shot prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.config.sft import SFTConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.data.prompts import render_prompt
from r1train.data.worked_solutions import check_solutions, worked_solution
from r1train.seeds import derive_seed


def few_shot_prompts(
    problems: Sequence[Problem],
    solved: ProblemSet,
    shots: int,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    seed: int,
) -> list[str]:
    """The rendered prompt of each problem, after `shots` of those in `solved` that are of the same
    source, each with a flawless worked solution and the end of the sequence."""
    check_solutions(solved.sources, teacher := SFTConfig())
    if template == "chat":
        raise ConfigError(
            f"eval.num_fewshot = {shots}: no turns of a chat are made of worked solutions; choose "
            "another task.prompt_template, or 0"
        )
    of_source: dict[int, list[int]] = {}
    for number, problem in solved.as_they_lie():
        of_source.setdefault(problem.source, []).append(number)
    prompts = []
    for place, problem in enumerate(problems):
        rng = random.Random(derive_seed(seed, "shots", place))
        parts = []
        for number in rng.sample(of_source[problem.source], shots):
            shot = solved[number]
            parts += [render_prompt(shot.prompt, template), worked_solution(shot, teacher, rng)]
            parts.append(f"{tokenizer.eos_token}")
        prompts.append("".join([*parts, render_prompt(problem.prompt, template)]))
    return prompts
