"""Completions with what they answer: what rewards judge and samples.jsonl keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from r1train.data.encode import decode_completions
from r1train.data.problems import Problem
from r1train.data.prompts import render_prompt


@dataclass(frozen=True)
class Sample:
    """One completion of a problem."""

    problem: Problem
    prompt: str
    """The rendered prompt, as the model saw it."""
    completion: str
    """What `decode_completions` makes of the tokens."""
    completion_ids: Sequence[int]
    finished: bool
    """False where the length limit cut the completion off."""


def samples_of(
    problems: Sequence[Problem],
    completion_ids: Sequence[list[int]],
    finished: Sequence[bool],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
) -> list[Sample]:
    """The sample of each completion, where `problems[i]` is what completion i answers."""
    distinct = {id(problem): problem for problem in problems}  # a group has one prompt
    prompts = {
        key: render_prompt(problem.prompt, template, tokenizer) for key, problem in distinct.items()
    }
    texts = decode_completions(tokenizer, list(completion_ids))
    return [
        Sample(problem, prompts[id(problem)], text, ids, ended)
        for problem, text, ids, ended in zip(problems, texts, completion_ids, finished, strict=True)
    ]
