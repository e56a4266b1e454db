"""Problems: where they come from, and which of them are trained on.

Sources are reasoning-gym datasets and JSONL files. Training and held-out problems never share a
question.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from r1train.config import DatasetConfig, TaskConfig
from r1train.gym import create
from r1train.schema import ConfigError
from r1train.verifiers import Verifier
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


class ProblemSet(Sequence[Problem]):
    """Distinct problems and their verifier."""

    def __init__(self, problems: Sequence[Problem], verifier: Verifier) -> None:
        self.problems, self.verifier = tuple(problems), verifier

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> ProblemSet: ...
    def __getitem__(self, index: int | slice) -> Problem | ProblemSet:
        if isinstance(index, slice):
            return ProblemSet(self.problems[index], self.verifier)
        return self.problems[index]

    def verify(self, completion_answer: str | None, problem: Problem) -> float:
        """Score in [0, 1] of an extracted answer, in this process: see `RewardPool` for others."""
        return self.verifier(completion_answer, problem)


def load_problems(config: TaskConfig, seed: int) -> tuple[ProblemSet, ProblemSet]:
    """Training and held-out problems, distinct by question text, all drawn from `seed`.

    Both are random parts of one draw, so they have one distribution even where a source repeats its
    easier questions. Raises ConfigError where a source is unknown or has too few distinct problems.
    """
    weights = [dataset.weight for dataset in config.datasets]
    train_counts = _apportion(config.train_size, weights)
    heldout_counts = _apportion(config.heldout_size, weights)
    seen: set[str] = set()
    train: list[Problem] = []
    heldout: list[Problem] = []
    for source, dataset in enumerate(config.datasets):
        count = train_counts[source] + heldout_counts[source]
        drawn = _draw(dataset, source, count, seed, seen)
        random.Random(f"{seed}/split/{source}").shuffle(drawn)
        heldout += drawn[: heldout_counts[source]]
        train += drawn[heldout_counts[source] :]
    random.Random(f"{seed}/train").shuffle(train)
    random.Random(f"{seed}/heldout").shuffle(heldout)
    verifier = Verifier(config.datasets)
    return ProblemSet(train, verifier), ProblemSet(heldout, verifier)


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split by weight into whole numbers, the largest remainders rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _draw(
    dataset: DatasetConfig, source: int, count: int, seed: int, seen: set[str]
) -> list[Problem]:
    """`count` problems whose questions are not in `seen`, which they are added to."""
    found: list[Problem] = []
    candidates = _read_jsonl(dataset, source) if dataset.jsonl else _generate(dataset, source, seed)
    repeats = 0  # since the last new question: a small space repeats itself
    for problem in itertools.takewhile(lambda _: len(found) < count, candidates):
        question = " ".join(problem.question.split())
        if question not in seen:
            seen.add(question)
            found.append(problem)
            repeats = 0
        elif (repeats := repeats + 1) > 1000 + 10 * len(found):
            break
    if len(found) < count:
        raise ConfigError(
            f"task.datasets[{source}] ({dataset.name or dataset.jsonl}): {count} distinct problems "
            f"are needed for training and held-out together, {len(found)} were found; lower "
            "task.train_size or task.heldout_size, or widen the dataset"
        )
    return found


def _generate(dataset: DatasetConfig, source: int, seed: int) -> Iterator[Problem]:
    # Some datasets lay out all their problems from `size` at once, so they come in blocks.
    assert dataset.name is not None
    block_size = 500
    for block in itertools.count():
        block_seed = random.Random(f"{seed}/{source}/{block}").getrandbits(32)
        items = create(dataset.name, {**dataset.params, "size": block_size, "seed": block_seed})
        for i in range(block_size):
            entry = items[i]
            yield Problem(
                task=dataset.name,
                index=block * block_size + i,
                question=entry["question"],
                answer=entry["answer"] or "",
                metadata=entry.get("metadata", {}),
                source=source,
            )


def _read_jsonl(dataset: DatasetConfig, source: int) -> Iterator[Problem]:
    path = Path(str(dataset.jsonl))
    if not path.is_file():
        raise ConfigError(f"task.datasets[{source}].jsonl: no such file: {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            question, answer = str(entry["prompt"]), str(entry["answer"]).strip()
        except (json.JSONDecodeError, KeyError, TypeError):
            reason = 'expected an object with "prompt" and "answer"'
            raise ConfigError(f"{path}, line {number}: {reason}") from None
        if not answer:
            raise ConfigError(f"{path}, line {number}: the answer is empty")
        yield Problem(str(path), number - 1, question, answer, source=source)
