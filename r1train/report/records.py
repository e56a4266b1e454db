"""What a run's folder says of it: the records that reports are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError

Record = dict[str, Any]


@dataclass(frozen=True)
class StageRecords:
    """One stage of a run, finished or not."""

    name: str
    kind: str
    folder: Path

    @cached_property
    def metrics(self) -> list[Record]:
        """The lines that it has logged."""
        return [record for _, record in logged(self.folder / "metrics.jsonl")]

    @property
    def steps(self) -> list[Record]:
        """Those of its training steps."""
        return [line for line in self.metrics if "eval/format" not in line]

    @property
    def evaluations(self) -> list[Record]:
        """Those of held-out evaluations."""
        return [line for line in self.metrics if "eval/format" in line]

    @cached_property
    def samples(self) -> list[Record]:
        """Completions of its last evaluation."""
        records = [record for _, record in logged(self.folder / "samples.jsonl")]
        records = [record for record in records if "question" in record]
        last = max((record["step"] for record in records), default=0)
        return [record for record in records if record["step"] == last]

    @cached_property
    def record(self) -> Record:
        """What its artifact.json says; empty while it is not finished."""
        return read_record(self.folder / "artifact.json")

    @cached_property
    def table(self) -> Record:
        """Figures beside those of evaluations, where it has such."""
        return read_record(self.folder / "table.json")

    @property
    def seconds(self) -> float | None:
        return number(self.record.get("seconds"))


@dataclass(frozen=True)
class Records:
    """Of a folder with options and a summary."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def summary(self) -> Record:
        """What summary.json says; empty where nothing has ended yet."""
        return read_record(self.folder / "summary.json")

    @property
    def seconds(self) -> float | None:
        """Of the process that came last."""
        return number(self.summary.get("seconds"))

    @property
    def config(self) -> str:
        """Its options, as TOML."""
        return (self.folder / "config.toml").read_text(encoding="utf-8")


class RunRecords(Records):
    """A run of one seed."""

    @cached_property
    def stages(self) -> list[StageRecords]:
        """Those that have begun, in the order of the recipe."""
        planned = read_json(self.folder / "plan.json") or []
        stages = [
            StageRecords(one["name"], one["inputs"]["kind"], self.folder / one["name"])
            for one in planned
        ]
        return [stage for stage in stages if stage.folder.is_dir()]


class StudyRecords(Records):
    """A recipe that was run, from one seed or from several."""

    @cached_property
    def runs(self) -> list[RunRecords]:
        """One for each seed."""
        if (self.folder / "plan.json").is_file():
            return [RunRecords(self.folder)]
        seeds = sorted(self.folder.glob("seed-*/plan.json"), key=lambda path: _number(path.parent))
        return [RunRecords(path.parent) for path in seeds]

    @cached_property
    def stages(self) -> dict[str, list[StageRecords]]:
        """The same stage of all runs, by its name."""
        found: dict[str, list[StageRecords]] = {}
        for run in self.runs:
            for stage in run.stages:
                found.setdefault(stage.name, []).append(stage)
        return found


def study(folder: Path) -> StudyRecords:
    """Of the folder of a run or of several seeds. Raises ConfigError where it is neither."""
    found = StudyRecords(folder)
    if not (folder / "config.toml").is_file() or not found.runs:
        raise ConfigError(
            f"{folder} is no run folder: it has no config.toml, or nothing was begun in it"
        )
    return found


def number(value: object) -> float | None:
    """A figure; None for what is no finite number, as NaN is what was never measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if isfinite(value) else None
    except OverflowError:  # of an int
        return None


def _number(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> Record:
    """What a file holds; empty where there is no object that can be read."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def logged(log: Path) -> Iterator[tuple[bytes, Record]]:
    """The lines of a stage's log and what they hold, without those that a crash has torn."""
    for line in log.read_bytes().split(b"\n") if log.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # torn, or empty after the last line
            continue
        if isinstance(record, dict) and {"step", "stage"} <= record.keys():
            yield line, record
