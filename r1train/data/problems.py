"""Problems: what one is, and which of those that a task names are trained on.

Those of files stay there until they are asked for; training and held-out problems never share a
question.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import numpy as np

from r1train.config.schema import ConfigError
from r1train.config.stages import MARK
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.distinct import Asked, Index, distinct, hashed, question_key, questions_of
from r1train.data.fields import Message
from r1train.data.mixture import apportion, largest
from r1train.data.prompts import REPLACED, with_system
from r1train.data.records import record_of
from r1train.data.selection import Joined, Selection, as_they_lie, shuffled
from r1train.data.sources import open_rows
from r1train.data.sources.gym import generate
from r1train.data.tasks import TASKS, make
from r1train.data.usable import check_rows, usable, warn
from r1train.verify import AnswerType


@dataclass(frozen=True)
class Problem:
    """One question and what its verifier needs to know."""

    task: str
    """Name of the reasoning-gym dataset or of the task of our own, or path of the file."""
    index: int
    """Position of the problem in its source, counted over draws or rows."""
    question: str
    answer: str
    """Reference answer; empty where the verifier needs none."""
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    """What the dataset's verifier reads."""
    source: int = 0
    """Position of the source in `task.datasets`."""
    answer_type: AnswerType = "auto"
    """How `verify` compares an answer of a file with the reference."""
    messages: tuple[Message, ...] = ()
    """The conversation that `question` ends, where there is more of it than that."""
    columns: dict[str, Any] = field(default_factory=dict, hash=False)
    """The other fields of the row of a file, by name."""
    verifiable: bool = True
    """False where the source has no answers: whether one is right cannot be said."""
    place: str = ""
    """Of a file: the file and the row."""

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What `render_prompt` takes: the conversation where there is one, else the question."""
        return self.messages or self.question

    @property
    def key(self) -> str:
        """The same of problems that ask the same."""
        return question_key(self.messages or (("user", self.question),))

    @property
    def where(self) -> str:
        """What a message calls it."""
        return self.place or f"{self.task}, problem {self.index + 1}"


class ProblemSet(Sequence[Problem]):
    """Distinct problems, and the sources that they come from.

    `lacking` says of which source there is nothing, and why: see `require_all`.
    """

    def __init__(
        self, problems: Sequence[Problem], sources: tuple[DatasetConfig, ...], lacking: str = ""
    ) -> None:
        self.problems, self.sources, self.lacking = problems, sources, lacking

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> ProblemSet: ...
    def __getitem__(self, index: int | slice) -> Problem | ProblemSet:
        if isinstance(index, slice):
            return ProblemSet(self.problems[index], self.sources)
        return self.problems[index]

    def as_they_lie(self) -> Iterator[tuple[int, Problem]]:
        """Every problem with its number, in the order of the sources and of their rows: what goes
        through all of a large file reads it once."""
        for number in map(int, as_they_lie(self.problems)):
            yield number, self.problems[number]

    def require_all(self) -> None:
        """Raises ConfigError where a source that is to be drawn from has nothing left."""
        if self.lacking:
            raise ConfigError(self.lacking)

    def questions(self) -> set[int]:
        """Hashes of what is asked."""
        return {hashed(problem.key) for _, problem in self.as_they_lie()}


def load_problems(config: TaskConfig, seed: int) -> tuple[ProblemSet, ProblemSet]:
    """Training and held-out problems, distinct by question text, all drawn from `seed`.

    Both are random parts of one draw, so they have one distribution even where a source repeats its
    easier questions; a file may have its held-out problems in another. Questions that repeat, or
    that are held out and trained on, are left out with a warning. Raises ConfigError where a source
    is unknown, has a row that is no problem, or too few distinct problems. A file of which all is
    held out leaves nothing to train on: that is for `require_all` of the training problems to say.
    """
    files, asked = _read_files(config)
    train_counts, heldout_counts = _counts(config, files)
    train: list[Sequence[Problem]] = []
    heldout: list[Sequence[Problem]] = []
    for source, dataset in enumerate(config.datasets):
        held, count = heldout_counts[source], train_counts[source]
        rng = random.Random(f"{seed}/split/{source}")
        drawn: Sequence[Problem]
        if source not in files:
            drawn = _draw(config, source, count + held, seed, asked)
        elif files[source].heldout:
            drawn, own = files[source].train, shuffled(files[source].heldout, rng)
            _require(len(own), held, _name(source, dataset.heldout_path), "held-out")
            heldout.append(own[:held])
            held = 0
        else:
            drawn = files[source].train
        name = _name(source, dataset.name or dataset.path)
        _require(len(drawn), count + held, name, "training and held-out together")
        drawn = shuffled(drawn, rng)
        heldout.append(drawn[:held])
        train.append(drawn[held : held + count])
    return (
        ProblemSet(
            shuffled(Joined(train), random.Random(f"{seed}/train")),
            config.datasets,
            _lacking(config, files, heldout_counts),
        ),
        ProblemSet(shuffled(Joined(heldout), random.Random(f"{seed}/heldout")), config.datasets),
    )


def _counts(config: TaskConfig, files: Mapping[int, _File]) -> tuple[list[int], list[int]]:
    """How many problems of each source are trained on, and how many are held out."""
    given = [dataset.weight for dataset in config.datasets]
    weights = [1.0 if weight is None else weight for weight in given]
    heldout = apportion(config.heldout_size or 256, weights)
    if config.heldout_size is None:
        for source, file in files.items():
            if not weights[source]:
                continue
            fifth = max(1, len(file.train) // 5) if file.train else 0
            heldout[source] = len(file.heldout) or min(heldout[source], fifth)
    if config.train_size is not None:
        return apportion(config.train_size, weights), heldout
    if not any(weights[source] for source in files):
        return apportion(4096, weights), heldout
    left = {source: max(0, _left(file, heldout[source])) for source, file in files.items()}
    return largest(given, left), heldout


def _left(file: _File, held: int) -> int:
    """How many of its problems can be trained on, where so many are held out."""
    return len(file.train) - (0 if file.heldout else held)


def _lacking(config: TaskConfig, files: Mapping[int, _File], heldout: Sequence[int]) -> str:
    """Of which file nothing is left to train on, why, and what to do; empty where there is none."""
    for source, file in files.items():
        dataset = config.datasets[source]
        if dataset.weight == 0 or _left(file, heldout[source]) > 0:
            continue
        name = _name(source, dataset.path)
        if file.train:
            return (
                f"{name}: none of its {len(file.train)} distinct problems is left to train on, "
                f"since {heldout[source]} are held out; lower task.heldout_size, or give more "
                "problems"
            )
        return (
            f"{name}: it has no problem to train on that is not held out, or in a source before "
            "it; give a path with other questions"
        )
    return ""


def _name(source: int, what: str | None) -> str:
    return f"task.datasets[{source}] ({what})"


def _require(found: int, needed: int, source: str, purpose: str) -> None:
    if found < needed:
        raise ConfigError(
            f"{source}: {needed} distinct problems are needed for {purpose}, {found} were found; "
            "lower task.train_size or task.heldout_size, or widen the dataset"
        )


def _draw(config: TaskConfig, source: int, count: int, seed: int, asked: Asked) -> list[Problem]:
    """Up to `count` problems that ask what was not `asked`."""
    found: list[Problem] = []
    repeats = 0  # since the last new question: a small space repeats itself
    candidates = _generate(config, source, seed)
    for problem in itertools.takewhile(lambda _: len(found) < count, candidates):
        if asked.add(problem.key):
            found.append(problem)
            repeats = 0
        elif (repeats := repeats + 1) > 1000 + 10 * len(found):
            break
    return found


def _generate(config: TaskConfig, source: int, seed: int) -> Iterator[Problem]:
    dataset = config.datasets[source]
    assert dataset.name is not None
    own = make(dataset.name, dataset.params) if dataset.name in TASKS else None
    drawn_from = f"{seed}/{source}"
    entries = own.entries(drawn_from) if own else generate(dataset.name, dataset.params, drawn_from)
    for index, entry in enumerate(entries):
        yield Problem(
            task=dataset.name,
            index=index,
            question=entry["question"],
            answer=entry["answer"] or "",
            metadata=entry.get("metadata", {}),
            source=source,
            messages=_conversation((("user", entry["question"]),), config, dataset),
            verifiable=own is None or entry["answer"] is not None,
        )


def _conversation(
    messages: tuple[Message, ...], config: TaskConfig, dataset: DatasetConfig
) -> tuple[Message, ...]:
    """What a chat template renders beside the question: empty where that is all."""
    if config.prompt_template != "chat":
        return ()
    system = config.system_prompt if dataset.system_prompt is None else dataset.system_prompt
    messages = with_system(messages, system)
    return messages if len(messages) > 1 else ()


class FileProblems:
    """The problems of a file by the numbers of its rows, read whenever they are asked for."""

    def __init__(self, path: str, config: TaskConfig, source: int) -> None:
        self.path, self.config, self.source = path, config, source
        self.dataset = config.datasets[source]
        option = "path" if path == self.dataset.path else "heldout_path"
        self.rows = open_rows(path, f"task.datasets[{source}].{option}")
        self.record = partial(record_of, dataset=self.dataset, template=config.prompt_template)

    def __getitem__(self, number: int) -> Problem:
        record = self.record(self.rows[number])
        return Problem(
            task=self.path,
            index=number,
            question=record.question,
            answer=record.answer,
            source=self.source,
            answer_type=record.answer_type,
            messages=_conversation(record.messages, self.config, self.dataset),
            columns=record.columns,
            verifiable=self.dataset.answer_field != "",
            place=self.rows.where([number]),
        )

    def index(self) -> Index:
        """Every row that can be a problem. Templates other than "chat" ask the question alone."""
        index, replaced, chat = Index(self.rows), array("q"), self.config.prompt_template == "chat"
        for number, record in usable(self.rows, self.record, self.dataset.on_bad_row):
            asked = record.messages if chat else record.messages[-1:]
            index.add(number, question_key(asked), record.answer)
            if not chat and len(record.messages) > 1:
                replaced.append(number)
        warn(self.rows, replaced, REPLACED)
        return index


def check_files(config: TaskConfig) -> None:
    """Raises ConfigError where a file has a row that is no problem, though other sources are what
    stages have yet to leave."""
    for source, dataset in enumerate(config.datasets):
        for path in (dataset.path, dataset.heldout_path):
            if path is not None and not path.startswith(MARK):
                problems = FileProblems(path, config, source)
                check_rows(problems.rows, problems.record, dataset.on_bad_row)


@dataclass(frozen=True)
class _File:
    """The distinct problems of a source that is a file, or two."""

    train: Sequence[Problem]
    heldout: Sequence[Problem]
    """Those of `heldout_path`; where there is none, they are taken from `train`."""


def _read_files(config: TaskConfig) -> tuple[dict[int, _File], Asked]:
    """The sources that are files, and all that they ask. What is held out in any of them is trained
    on in none."""
    train, heldout = (
        {
            source: FileProblems(path, config, source)
            for source, dataset in enumerate(config.datasets)
            if (path := getattr(dataset, option)) is not None
        }
        for option in ("path", "heldout_path")
    )
    held = [problems.index() for problems in heldout.values()]
    indexes = [problems.index() for problems in train.values()]
    own = dict(zip(heldout, distinct(held, np.empty(0, np.int64)), strict=True))
    kept = zip(train.items(), distinct(indexes, questions_of(held)), strict=True)
    files = {
        source: _File(
            Selection(problems, numbers),
            Selection(heldout[source], own[source]) if source in own else [],
        )
        for (source, problems), numbers in kept
    }
    return files, Asked(questions_of([*held, *indexes]))
