"""Which questions of the benchmarks a run has met in its training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r1train.config.sections import Config
from r1train.config.stages import MARK
from r1train.config.task import TaskConfig
from r1train.data.decontamination import Benchmarked
from r1train.data.problems import load_problems
from r1train.data.sources import open_rows
from r1train.data.sources.base import RowError
from r1train.stages import check_stages, kind_of
from r1train.suite.questions import load
from r1train.suite.specs import chosen


def contamination(config: Config, data: Path, names: Sequence[str]) -> dict[str, set[str]]:
    """Of each benchmark the ids of the questions that share ten words in a row with what the
    stages of the run are trained on."""
    questions = {one.name: load(one, data, config.suite.limit) for one in chosen(names)}
    known = {name: Benchmarked(one.text for one in asked) for name, asked in questions.items()}
    found: dict[str, set[str]] = {name: set() for name in questions}
    for text in training_texts(config):
        for name, benchmark in known.items():
            found[name] |= {questions[name][number].id for number in benchmark.met(text)}
    return found


def training_texts(config: Config) -> Iterator[str]:
    """What the stages learn from: their problems, and all text of the files that they read, which
    are demonstrations, judgements and what is mixed with samples. What one stage makes for another
    begins with the same problems."""
    check_stages(config)
    tasks: list[TaskConfig] = []
    files: list[str] = []
    for stage in config.stages:
        own = config.of(stage)
        tasks += [own.task] if own.task not in tasks else []
        files += [path for path in _files(stage.kind, own) if path not in files]
    for task in tasks:
        if all(not (one.path or "").startswith(MARK) for one in task.datasets):
            for _, problem in load_problems(task, config.seed)[0].as_they_lie():
                yield f"{problem.question}\n{problem.answer}"
    for file in files:
        if file.startswith(MARK):
            continue
        for _, row in open_rows(file).scan():
            if not isinstance(row, RowError):
                yield "\n".join(_texts(row))


def _files(kind: str, config: Config) -> Iterator[str]:
    """The files that a stage of this kind reads beside its problems."""
    for name in kind_of(kind).uses:
        section: Any = getattr(config, name)
        if section is not config.task:
            for dataset in (*getattr(section, "datasets", ()), *getattr(section, "mix", ())):
                yield dataset.path


def _texts(value: Any) -> Iterator[str]:
    """Every text of a row, of its messages too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
