"""What a benchmark is, and which there are: one TOML file each, in `benchmarks`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from r1train.config.schema import ConfigError, Count, Section, build, nearest, shown
from r1train.suite.extraction import RULES

Metric = Literal[
    "math", "choice", "f1", "instructions", "tests", "contests", "judged", "pairwise", "battles"
]


@dataclass(frozen=True)
class Benchmark(Section, section="benchmark"):
    """How a benchmark is asked and scored."""

    name: str
    """Of its file here, and of the folder or the file that its questions are read from."""
    title: str
    """What tables call it."""
    source: str
    """Where its files are published."""
    metric: Metric
    """How an answer is scored; `r1train.suite.metrics`."""
    prompt: str
    """What the user says: text with {question}, and what else the format has, such as {choices}."""
    format: str = "answers"
    """How its files are read; `r1train.suite.formats`."""
    files: tuple[str, ...] = ()
    """Patterns of files in its folder; those of the first that matches are read."""
    package: str = ""
    """A file of an installed package that has its questions, where the user gives none."""
    fields: dict[str, Any] = field(default_factory=dict)
    """For the format: the names that the files have for what it reads, each one or several."""
    extraction: tuple[str, ...] = ("all",)
    """Rules by which an answer is found, the first that finds one; `r1train.suite.extraction`."""
    k: Count = 1
    """Completions of each question (R1: 64 for AIME and GPQA, 16 for MATH, 8 for LiveCodeBench)."""
    max_tokens: Count = 32_768
    """Tokens after which a completion is cut off (R1: 32,768)."""

    def check(self) -> None:
        for rule in self.extraction:
            self.require(rule in RULES, "extraction", nearest(rule, RULES))
        self.require("{" in self.prompt, "prompt", "expected text with {question}")

    @property
    def votes(self) -> bool:
        """Whether completions can agree on an answer: cons@k is of these."""
        return self.metric in ("math", "choice")


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark that comes with the package, by name."""
    folder = Path(str(files("r1train"))) / "suite" / "benchmarks"
    return {path.stem: _read(path) for path in sorted(folder.glob("*.toml"))}


def chosen(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names. Raises ConfigError where there is none of one."""
    known = benchmarks()
    for name in names:
        if name not in known:
            raise ConfigError(f"--benchmarks {shown(name)}: {nearest(name, known)}")
    return [known[name] for name in names]


def _read(path: Path) -> Benchmark:
    try:
        spec: Benchmark = build(Benchmark, {"name": path.stem, **tomllib.loads(path.read_text())})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return spec
