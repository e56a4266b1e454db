"""Multiple choice: MMLU in its three shapes, MMLU-Redux, MMLU-Pro, C-Eval, GPQA."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.formats.rows import Row, read_cells, read_rows, value, written
from r1train.suite.questions import LETTERS, Question
from r1train.suite.specs import Benchmark

_SPLIT = re.compile(r"(data|test|val|validation)|((data|test|val|validation)-)?\d+(-of-\d+)?")
"""What a file is called that says no more than which part of a data set it holds."""


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Rows with a question, its choices as a list or by letters, and the right one's letter, number
    from 0, or text. `fields` may have "subjects": what the prompt calls those of the files."""
    names: Mapping[str, str] = benchmark.fields.get("subjects", {})
    count: Counter[str] = Counter()
    for path in paths:
        part = _part(path)
        for row in read_rows(path):
            text = written(value(row, ("question", "Question"), path))
            # MMLU-Pro fills up with "N/A" in one of its editions.
            choices = tuple(choice for choice in _choices(row, path) if choice != "N/A")
            columns = ("subject", "Subject", "category")
            subject = str(next((row[name] for name in columns if row.get(name)), part))
            yield Question(
                id=f"{part}/{row.get('question_id', row.get('id', count[part]))}",
                text=text,
                reference=_letter(value(row, ("answer", "Answer"), path), choices, path),
                choices=choices,
                slots={
                    "choices": lettered(choices, "{}. {}"),
                    "subject": names.get(subject, subject),
                },
                subject=subject,
            )
            count[part] += 1


def _choices(row: Row, path: Path) -> list[str]:
    """A list, or what the row has under A, B and so on, up to the last that is there."""
    given = next((row[name] for name in ("choices", "options") if row.get(name)), None)
    if given is None:
        given = ["" if row.get(letter) is None else row[letter] for letter in LETTERS]
        while given and given[-1] == "":
            given.pop()
    if not isinstance(given, list):  # CSV would have it as Python or numpy writes it
        raise ConfigError(
            f"{path}: the choices {str(given)[:60]!r} are no list: give JSONL or Parquet"
        )
    return [written(choice) for choice in given]


def read_mmlu(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Hendrycks' files by subject have no names of columns; simple-evals' and HuggingFace's do."""
    for path in paths:
        if not path.name.endswith("_test.csv"):
            yield from read(benchmark, [path])
            continue
        for number, cells in enumerate(read_cells(path)):
            if len(cells) != 6:
                raise ConfigError(
                    f"{path}: row {number + 1} has {len(cells)} columns: expected the question, "
                    "four choices and a letter"
                )
            text, *choices, letter = cells
            yield Question(
                id=f"{_part(path)}/{number}",
                text=text,
                reference=_letter(letter, choices, path),
                choices=tuple(choices),
                subject=_part(path),
            )


def read_mmlu_redux(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Questions whose annotators found no error, and those whose answer they corrected."""
    number = 0
    for path in paths:
        for row in read_rows(path):
            number += 1
            kind, answer = row.get("error_type", "ok"), value(row, "answer", path)
            if kind == "wrong_groundtruth":
                answer = row.get("correct_answer")
            choices = _choices(row, path)
            if kind not in ("ok", "wrong_groundtruth") or answer in (None, ""):
                continue
            yield Question(
                id=str(number),
                text=written(value(row, "question", path)),
                reference=_letter(answer, choices, path),
                choices=tuple(choices),
                slots={"choices": lettered(choices, "- ({}) {}")},
                subject=str(row.get("subject") or _part(path)),
            )


def read_gpqa(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """One right answer and three wrong ones, in an order drawn for each question by what it asks:
    the same in every run, so that its completions can be put to a vote."""
    for path in paths:
        for number, row in enumerate(read_rows(path)):
            names = ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
            answers = [written(value(row, name, path)) for name in names]
            text = written(value(row, "Question", path))
            order = random.Random(text).sample(range(4), 4)
            yield Question(
                id=str(row.get("Record ID") or number),
                text=text,
                reference=LETTERS[order.index(0)],
                choices=tuple(answers[i] for i in order),
                subject=str(row.get("High-level domain") or ""),
            )


def lettered(choices: Sequence[str], form: str) -> str:
    """A line for each choice."""
    return "\n".join(form.format(*pair) for pair in zip(LETTERS, choices, strict=False))


def _letter(answer: Any, choices: Sequence[str], path: Path) -> str:
    """The letter of an answer that is one, or a number from 0, or the text of a choice."""
    found = written(answer)
    allowed = LETTERS[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return LETTERS[answer]
    if len(found) == 1 and found.upper() in allowed:
        return found.upper()
    if found.isdecimal() and int(found) < len(choices):  # CSV, and what MMLU-Redux corrects
        return LETTERS[int(found)]
    if found in choices:
        return LETTERS[list(choices).index(found)]
    raise ConfigError(
        f"{path}: the answer {found!r} is none of {len(choices)} choices: expected one of "
        f"{', '.join(allowed)} (of C-Eval, val has answers and test has none)"
    )


def _part(path: Path) -> str:
    """The part of the benchmark that a file holds, mostly a subject: by its own name, or by its
    folder's, as HuggingFace names the files of a subject only by their split."""
    name = path.name.partition(".")[0]
    while _SPLIT.fullmatch(name):
        path = path.parent
        name = path.name
    return re.sub("_(test|val)$", "", name)
