"""A benchmark's questions, from the files that the user has."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.specs import Benchmark

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question, and what its metric needs to know."""

    id: str
    text: str
    """What is asked, without the instructions of the prompt."""
    reference: Any
    """Plain data that the benchmark's metric reads, such as "42" or the letter of a choice."""
    slots: dict[str, str] = field(default_factory=dict)
    """What else the prompt has, by name."""
    choices: tuple[str, ...] = ()
    """Of a multiple choice, in the order of their letters."""
    subject: str = ""
    """What the files call its part of the benchmark, such as a subject or a level."""

    def prompt(self, template: str) -> str:
        """What the user says. Nothing of a question is taken for a slot of the template."""
        slots = {"question": self.text, **self.slots}
        slots |= dict(zip(LETTERS, self.choices, strict=False))
        return re.sub(r"\{(\w+)\}", lambda match: slots.get(match[1], match[0]), template)


def files_of(benchmark: Benchmark, data: Path) -> list[Path]:
    """The files in the user's folder: `NAME.csv` and its like, or those in `NAME/` that the
    benchmark's patterns name; none where there are none."""
    single = sorted(p for p in data.glob(f"{benchmark.name}.*") if p.is_file())
    if single:
        return single[:1]
    for pattern in benchmark.files:
        if found := sorted(p for p in (data / benchmark.name).glob(pattern) if p.is_file()):
            return found
    return []


def _packaged(benchmark: Benchmark) -> list[Path]:
    package, _, file = benchmark.package.partition("/")
    spec = find_spec(package) if package else None
    places = (spec.submodule_search_locations or ()) if spec else ()
    return [path for place in places if (path := Path(place, file)).is_file()]


def load(benchmark: Benchmark, data: Path, limit: int | None = None) -> list[Question]:
    """The questions of a benchmark, or `limit` of them, drawn by a fixed seed.

    Raises ConfigError where no file is there, or what is there is not as it is published.
    """
    from r1train.suite.formats import FORMATS

    found = files_of(benchmark, data) or _packaged(benchmark)
    if not found:
        places = ", ".join(f"{benchmark.name}/{pattern}" for pattern in benchmark.files)
        raise ConfigError(
            f"--data {data}: no file of {benchmark.title}: expected {benchmark.name}.jsonl (or "
            f".csv, .json, .parquet), or {places}; it is published at {benchmark.source}"
        )
    questions = list(FORMATS[benchmark.format](benchmark, found))
    if not questions:
        raise ConfigError(f"{found[0]}: no question of {benchmark.title} is in it")
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ConfigError(f"{found[0]}: two questions have the id {twice!r}: each is asked once")
    if limit is not None and limit < len(questions):
        kept = sorted(random.Random(benchmark.name).sample(range(len(questions)), limit))
        questions = [questions[i] for i in kept]
    return questions
