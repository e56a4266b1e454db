"""Questions whose answers are compared with a baseline's: AlpacaEval and ArenaHard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.formats.rows import Row, read_rows, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark

_ID = ("uid", "question_id")
GAMED = "df_gamed.csv"


def read_alpaca_eval(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """alpaca_eval_gpt4_baseline.json. What its authors control lengths with is read where
    df_gamed.csv lies beside it: how hard each instruction is, and how the baseline itself fares
    against itself when it is told to be concise or verbose."""
    number = 0
    for path in paths:
        hard, gamed = _length_control(path.parent / GAMED)
        for row in read_rows(path):
            yield Question(
                id=str(number),
                text=str(value(row, "instruction", path)),
                reference={
                    "answer": str(value(row, "output", path)),
                    "difficulty": hard.get(number),
                    "gamed": gamed.get(number, []),
                },
                subject=str(row.get("dataset", "")),
            )
            number += 1


def _length_control(path: Path) -> tuple[dict[int, float], dict[int, list[list[float]]]]:
    """By the number of the instruction: its difficulty; and the preference for a gamed answer,
    with how much shorter than the baseline's it is, in standard deviations."""
    hard: dict[int, float] = {}
    gamed: dict[int, list[list[float]]] = {}
    for row in read_rows(path) if path.is_file() else ():
        number = int(float(value(row, "index", path)))
        hard[number] = float(value(row, "instruction_difficulty", path))
        pair = [float(value(row, name, path)) for name in ("preference", "std_delta_len")]
        gamed.setdefault(number, []).append(pair)
    return hard, gamed


def read_arena_hard(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """question.jsonl, and beside it or in model_answer/ the answers of the baseline. `fields` names
    that of each category, "baselines"; a file that is alone is taken for it."""
    for path in paths:
        answers: dict[Path, dict[str, str]] = {}
        for row in read_rows(path):
            name, category = str(value(row, _ID, path)), str(row.get("category", ""))
            file = _answers(path, benchmark.fields["baselines"].get(category))
            if file not in answers:
                answers[file] = {
                    str(value(one, _ID, file)): _answer(one, file) for one in read_rows(file)
                }
            if name not in answers[file]:
                raise ConfigError(f"{file}: no answer to question {name!r} of {path}")
            turns = row.get("turns")
            text = turns[0]["content"] if turns else value(row, "prompt", path)
            yield Question(name, str(text), {"answer": answers[file][name]}, subject=category)


def _answers(path: Path, baseline: str | None) -> Path:
    """The file with the answers of the baseline to the questions in `path`."""
    found = [one for one in path.parent.glob("*.jsonl") if one != path]
    found += (path.parent / "model_answer").glob("*.jsonl")
    named = [one for one in found if one.stem == baseline]
    if len(named or found) != 1:
        wanted = f"model_answer/{baseline}.jsonl" if baseline else "one file with them"
        raise ConfigError(f"{path}: its questions need the baseline's answers: expected {wanted}")
    return (named or found)[0]


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
