"""ArenaHard: questions in one file, and the baseline's answers to them in another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.formats.rows import Row, read_rows, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark

_ID = ("uid", "question_id")


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """question.jsonl, and a file of the baseline such as model_answer/gpt-4-0314.jsonl."""
    asked = [path for path in paths if path.name.startswith("question")]
    answered = [path for path in paths if not path.name.startswith("question")]
    if len(asked) != 1 or len(answered) != 1:
        raise ConfigError(
            f"{paths[0].parent}: {benchmark.title} compares with a baseline: expected "
            "question.jsonl, and one file with the baseline's answers"
        )
    baseline = {
        str(value(row, _ID, answered[0])): _answer(row, answered[0])
        for row in read_rows(answered[0])
    }
    for row in read_rows(asked[0]):
        name = str(value(row, _ID, asked[0]))
        if name not in baseline:
            raise ConfigError(f"{answered[0]}: no answer to question {name!r} of {asked[0]}")
        turns = row.get("turns")
        text = turns[0]["content"] if turns else value(row, "prompt", asked[0])
        yield Question(name, str(text), baseline[name], subject=str(row.get("category", "")))


def _answer(row: Row, path: Path) -> str:
    """Of the two editions: messages, or choices with turns."""
    found: Any = row
    try:
        if "messages" in row:
            found = row["messages"][-1]["content"]
        else:
            found = row["choices"][0]["turns"][0]["content"]
        return str(found["answer"] if isinstance(found, dict) else found)
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{path}: a row has neither messages nor choices with turns") from None
