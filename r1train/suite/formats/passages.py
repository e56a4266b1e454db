"""DROP: questions on passages, as simple-evals or as its authors publish them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.formats.rows import read_rows, read_text, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark

SHOTS = 3


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """The questions of dev, each after three examples of train, drawn by its own text."""
    train = [path for path in paths if "train" in path.name]
    dev = [path for path in paths if "train" not in path.name]
    if not train or not dev:
        raise ConfigError(
            f"{paths[0].parent}: {benchmark.title} is asked after {SHOTS} examples: expected a "
            "file of dev, and one of train that they are taken from"
        )
    examples = [_example(*found) for path in train for found in _rows(path)]
    for path in dev:
        for number, (context, answers) in enumerate(_rows(path)):
            shots = random.Random(context).sample(examples, min(SHOTS, len(examples)))
            yield Question(
                id=f"{path.name.partition('.')[0]}/{number}",
                text=context,
                reference=answers,
                slots={"examples": "\n\n".join(shots)},
            )


def _rows(path: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """What is asked, and the answers of its annotators, each of one span or several."""
    if ".jsonl" in path.name:  # simple-evals': text, and answers parted by |
        for row in read_rows(path):
            context = str(value(row, "context", path)).removesuffix("Answer:").rstrip()
            said = str(value(row, "ref_text", path)).split("|")
            yield context, [[one.strip()] for one in said if one.strip()]
        return
    for passage in json.loads(read_text(path)).values():
        for pair in passage["qa_pairs"]:
            given = [pair["answer"], *pair.get("validated_answers", ())]
            answers = [spans for answer in given if (spans := _spans(answer))]
            if answers:
                yield f"Passage: {passage['passage']}\nQuestion: {pair['question']}", answers


def _spans(answer: Mapping[str, Any]) -> list[str]:
    """A number, spans of the passage, or a date."""
    if answer.get("number"):
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(span) for span in answer["spans"]]
    date = [answer["date"].get(part, "") for part in ("day", "month", "year")]
    return [" ".join(part for part in date if part)] if any(date) else []


def _example(context: str, answers: list[list[str]]) -> str:
    return f"---\n{context}\nAnswer: {' and '.join(answers[0])}"
