"""How the files of benchmarks are read, one function for each published format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from r1train.suite.formats import (
    answers,
    choices,
    contests,
    instructions,
    pairs,
    passages,
    programs,
)
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark

FORMATS: dict[str, Callable[[Benchmark, list[Path]], Iterable[Question]]] = {
    "answers": answers.read,
    "clue_wsc": answers.read_clue_wsc,
    "choices": choices.read,
    "mmlu": choices.read_mmlu,
    "mmlu_redux": choices.read_mmlu_redux,
    "gpqa": choices.read_gpqa,
    "drop": passages.read,
    "ifeval": instructions.read,
    "alpaca_eval": pairs.read_alpaca_eval,
    "arena_hard": pairs.read_arena_hard,
    "livecodebench": programs.read_livecodebench,
    "humaneval": programs.read_humaneval,
    "codeforces": contests.read,
}
