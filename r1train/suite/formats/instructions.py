"""IF-Eval: prompts with the instructions in them, by the names of their checkers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from r1train.suite.formats.rows import read_rows, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Rows of input_data.jsonl: key, prompt, instruction_id_list, kwargs."""
    for path in paths:
        for row in read_rows(path):
            names = ("instruction_id_list", "kwargs")
            yield Question(
                id=str(value(row, "key", path)),
                text=str(value(row, "prompt", path)),
                reference={name: value(row, name, path) for name in names},
            )
