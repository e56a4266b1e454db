"""Rows with a question and its final answer: AIME, MATH, GSM8K, CNMO, AMC, SimpleQA, CLUEWSC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.data.golds import final_answer
from r1train.suite.formats.rows import Row, read_rows, value, written
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """`fields` names "question" and "answer", and may name "id" and "subject"."""
    number = 0
    for path in paths:
        for row in read_rows(path):
            text = written(value(row, benchmark.fields["question"], path))
            answer = written(value(row, benchmark.fields["answer"], path))
            if benchmark.metric == "math":
                try:
                    answer = final_answer(answer)
                except ValueError as error:
                    raise ConfigError(f"{path}: question {number + 1}: {error}") from None
            yield Question(
                id=optional(row, benchmark, "id", path) or str(number),
                text=text,
                reference=answer,
                subject=optional(row, benchmark, "subject", path),
            )
            number += 1


def optional(row: Row, benchmark: Benchmark, field: str, path: Path) -> str:
    """What the row has under a field that the benchmark may have named; "" where it has nothing."""
    names = benchmark.fields.get(field, [])
    names = [names] if isinstance(names, str) else names
    there = [name for name in names if row.get(name) not in (None, "")]
    return written(value(row, there, path)) if there else ""


def read_clue_wsc(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """CLUE's WSC: whether a pronoun means a name. A: it does; B: it does not. HuggingFace has the
    labels "true" and "false" as 0 and 1."""
    for path in paths:
        for number, row in enumerate(read_rows(path)):
            target, label = value(row, "target", path), value(row, "label", path)
            yield Question(
                id=str(row.get("idx", number)),
                text=written(value(row, "text", path)),
                reference="A" if str(label).lower() in ("true", "0") else "B",
                slots={
                    "name": value(target, "span1_text", path),
                    "pronoun": value(target, "span2_text", path),
                },
                choices=("是", "否"),
            )
