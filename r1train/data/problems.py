"""Problems: where they come from, and which of them are trained on.

Sources are reasoning-gym datasets and JSONL files. Training and held-out problems never share a
question.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from r1train.config.schema import ConfigError
from r1train.config.sections import DatasetConfig, TaskConfig
from r1train.data.gym import create
from r1train.data.jsonl import Message, read_jsonl, some_lines
from r1train.verify import AnswerType


@dataclass(frozen=True)
class Problem:
    """One question and what its verifier needs to know."""

    task: str
    """Name of the reasoning-gym dataset, or path of the JSONL file."""
    index: int
    """Position of the problem in its source, counted over draws or lines."""
    question: str
    answer: str
    """Reference answer; empty where the verifier needs none."""
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    """What the dataset's verifier reads."""
    source: int = 0
    """Position of the source in `task.datasets`."""
    answer_type: AnswerType = "auto"
    """How `verify` compares an answer of a JSONL file with the reference."""
    messages: tuple[Message, ...] = ()
    """The conversation that `question` ends, where there is more of it than that."""

    @property
    def prompt(self) -> str | tuple[Message, ...]:
        """What `render_prompt` takes: the conversation where there is one, else the question."""
        return self.messages or self.question

    @property
    def where(self) -> str:
        """What a message calls it: its file and line, or its dataset and number there."""
        place = "problem" if self.task.isidentifier() else "line"
        return f"{self.task}, {place} {self.index + 1}"


class ProblemSet(Sequence[Problem]):
    """Distinct problems, and the sources that they come from."""

    def __init__(self, problems: Sequence[Problem], sources: tuple[DatasetConfig, ...]) -> None:
        self.problems, self.sources = tuple(problems), sources

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


def load_problems(config: TaskConfig, seed: int) -> tuple[ProblemSet, ProblemSet]:
    """Training and held-out problems, distinct by question text, all drawn from `seed`.

    Both are random parts of one draw, so they have one distribution even where a source repeats its
    easier questions; a file may have its held-out problems in another. Questions that repeat, or
    that are held out and trained on, are left out with a warning. Raises ConfigError where a source
    is unknown, has a line that is no problem, or too few distinct problems.
    """
    files = _read_files(config)
    seen = {_key(p) for file in files.values() for p in (*file.problems, *file.heldout)}
    train_counts, heldout_counts = _counts(config, files)
    train: list[Problem] = []
    heldout: list[Problem] = []
    for source, dataset in enumerate(config.datasets):
        held, count = heldout_counts[source], train_counts[source]
        shuffle = random.Random(f"{seed}/split/{source}").shuffle
        if source not in files:
            drawn = _draw(dataset, source, count + held, seed, seen)
        elif files[source].heldout:
            drawn, own = files[source].problems, files[source].heldout
            shuffle(own)
            _require(
                len(own), held, f"task.datasets[{source}] ({dataset.heldout_jsonl})", "held-out"
            )
            heldout, held = heldout + own[:held], 0
        else:
            drawn = files[source].problems
        name = f"task.datasets[{source}] ({dataset.name or dataset.jsonl})"
        _require(len(drawn), count + held, name, "training and held-out together")
        shuffle(drawn)
        heldout += drawn[:held]
        train += drawn[held : held + count]
    random.Random(f"{seed}/train").shuffle(train)
    random.Random(f"{seed}/heldout").shuffle(heldout)
    return ProblemSet(train, config.datasets), ProblemSet(heldout, config.datasets)


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split by weight into whole numbers, the largest remainders rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _counts(config: TaskConfig, files: Mapping[int, _File]) -> tuple[list[int], list[int]]:
    """How many problems of each source are trained on, and how many are held out."""
    given = [dataset.weight for dataset in config.datasets]
    weights = [weight or 1.0 for weight in given]
    heldout = _apportion(config.heldout_size or 256, weights)
    if config.heldout_size is None:
        for source, file in files.items():
            fifth = max(1, len(file.problems) // 5)
            heldout[source] = len(file.heldout) or min(heldout[source], fifth)
    if config.train_size is not None:
        return _apportion(config.train_size, weights), heldout
    if not files:
        return _apportion(4096, weights), heldout
    left = {
        source: len(file.problems) - (0 if file.heldout else heldout[source])
        for source, file in files.items()
    }
    for source, count in left.items():
        if count < 1:
            name = f"task.datasets[{source}] ({config.datasets[source].jsonl})"
            raise ConfigError(
                f"{name}: none of its {len(files[source].problems)} distinct problems is left to "
                "train on; lower task.heldout_size, or give more problems"
            )
    if len(files) == len(weights) and not any(given):
        return [left[source] for source in range(len(weights))], heldout
    size = min(int(count * sum(weights) / weights[source]) for source, count in left.items())
    train = _apportion(max(size, 1), weights)
    return [min(count, left.get(source, count)) for source, count in enumerate(train)], heldout


def _require(found: int, needed: int, source: str, purpose: str) -> None:
    if found < needed:
        raise ConfigError(
            f"{source}: {needed} distinct problems are needed for {purpose}, {found} were found; "
            "lower task.train_size or task.heldout_size, or widen the dataset"
        )


def _draw(
    dataset: DatasetConfig, source: int, count: int, seed: int, seen: set[str]
) -> list[Problem]:
    """Up to `count` problems whose questions are not in `seen`, which they are added to."""
    found: list[Problem] = []
    candidates = _generate(dataset, source, seed)
    repeats = 0  # since the last new question: a small space repeats itself
    for problem in itertools.takewhile(lambda _: len(found) < count, candidates):
        question = _key(problem)
        if question not in seen:
            seen.add(question)
            found.append(problem)
            repeats = 0
        elif (repeats := repeats + 1) > 1000 + 10 * len(found):
            break
    return found


def _key(problem: Problem) -> str:
    """What makes two problems the same: all that is asked, however it is spaced."""
    said = [content for _, content in problem.messages] or [problem.question]
    return " ".join(" ".join(said).split())


def _generate(dataset: DatasetConfig, source: int, seed: int) -> Iterator[Problem]:
    # Some datasets lay out all their problems from `size` at once, so they come in blocks.
    assert dataset.name is not None
    block_size = 500
    for block in itertools.count():
        block_seed = random.Random(f"{seed}/{source}/{block}").getrandbits(32)
        items = create(dataset.name, {**dataset.params, "size": block_size, "seed": block_seed})
        for i in range(block_size):
            try:
                entry = items[i]
            except Exception as error:  # of any of a hundred generators
                raise ConfigError(
                    f"reasoning-gym dataset '{dataset.name}' cannot make problems of its params: "
                    f"{type(error).__name__}: {error}"
                ) from error
            yield Problem(
                task=dataset.name,
                index=block * block_size + i,
                question=entry["question"],
                answer=entry["answer"] or "",
                metadata=entry.get("metadata", {}),
                source=source,
            )


@dataclass(frozen=True)
class _File:
    """The distinct problems of a source that is a file, or two."""

    problems: list[Problem]
    heldout: list[Problem]
    """Those of `heldout_jsonl`; where there is none, they are taken from `problems`."""


def _read_files(config: TaskConfig) -> dict[int, _File]:
    """The sources that are files. What is held out in any of them is trained on in none."""
    chosen = {source: d for source, d in enumerate(config.datasets) if d.jsonl is not None}
    template, seen, held = config.prompt_template, dict[str, Problem](), dict[str, Problem]()
    heldout = {
        source: _distinct(_read(Path(d.heldout_jsonl), d, source, template), held, {})
        for source, d in chosen.items()
        if d.heldout_jsonl is not None
    }
    return {
        source: _File(
            _distinct(_read(Path(str(d.jsonl)), d, source, template), seen, held),
            heldout.get(source, []),
        )
        for source, d in chosen.items()
    }


def _read(path: Path, dataset: DatasetConfig, source: int, template: str) -> list[Problem]:
    """Every problem of a file. Templates other than "chat" ask the user's message alone."""
    if not path.is_file():
        place = "" if path.is_absolute() else f" (in {Path.cwd()})"
        raise ConfigError(f"task.datasets[{source}]: no such file: {path}{place}")
    problems, systems = [], []
    for entry in read_jsonl(
        path,
        prompt_field=dataset.prompt_field,
        answer_field=dataset.answer_field,
        answer_type=dataset.answer_type,
    ):
        before = {role for role, _ in entry.messages[:-1]}
        if template != "chat" and before:
            if before != {"system"}:
                raise ConfigError(
                    f"{path}, line {entry.line}: a conversation of several turns needs "
                    f"task.prompt_template = 'chat'; it is {template!r}"
                )
            systems.append(entry.line)
        problems.append(
            Problem(
                task=str(path),
                index=entry.line - 1,
                question=entry.question,
                answer=entry.answer,
                source=source,
                answer_type=entry.answer_type,
                messages=entry.messages if before and template == "chat" else (),
            )
        )
    if systems:
        _warn(path, systems, "system messages are replaced by the instruction of the template")
    return problems


def _distinct(
    problems: Sequence[Problem], seen: dict[str, Problem], held: Mapping[str, Problem]
) -> list[Problem]:
    """The problems whose questions are in neither mapping; they are added to `seen`."""
    kept, repeated, contradicting, leaked = [], [], [], []
    for problem in problems:
        question, line = _key(problem), problem.index + 1
        if question in held:
            leaked.append(line)
        elif question not in seen:
            seen[question] = problem
            kept.append(problem)
        elif seen[question].answer == problem.answer:
            repeated.append(line)
        else:
            contradicting.append(line)
    for lines, what in (
        (repeated, "repeated questions are left out"),
        (contradicting, "repeated questions with another answer: the first answer is kept"),
        (leaked, "questions that are held out are left out of training"),
    ):
        if lines:
            _warn(problems[0].task, lines, what)
    return kept


def _warn(path: str | Path, lines: Sequence[int], what: str) -> None:
    logging.getLogger("r1train").warning("%s, %s: %s", path, some_lines(lines), what)
