"""Figures of the stages of a run, by the terms that findings name them with."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from r1train.config.findings import TERM, FindingConfig
from r1train.config.schema import ConfigError, nearest, shown
from r1train.config.sections import Config
from r1train.report.evaluation import EvalResult
from r1train.report.findings import Measured
from r1train.report.records import logged, read_record
from r1train.run.artifacts import Finished

MISSING = Measured(nan)


def check_findings(config: Config) -> None:
    """Every term names a stage. Raises ConfigError."""
    known = [str(stage.name) for stage in config.stages]
    for finding in config.findings:
        for key in ("left", "right"):
            match = TERM.fullmatch(getattr(finding, key))
            if match and match["stage"] not in known:
                raise ConfigError(
                    f"findings: {key} = {shown(getattr(finding, key))}: no stage "
                    f"{shown(match['stage'])}: {nearest(match['stage'], known)}"
                )


def unknown(config: Config, stages: Mapping[str, Finished]) -> list[str]:
    """What is said of terms whose stage is finished, and has no such figure."""
    said = []
    for term in dict.fromkeys(t for f in config.findings for t in (f.left, f.right)):
        match = TERM.fullmatch(term)
        stage = stages.get(match["stage"]) if match else None
        if match and stage and figure(term, stages) is MISSING:
            known = _figures(stage, trained=match["when"] in ("training", "early"))
            said.append(
                f"findings: {shown(term)}: stage {stage.name!r} in {stage.folder.parent} "
                "has no such figure: "
                f"{nearest(match['figure'], known) if known else 'it has none'}"
            )
    return said


def measured(finding: FindingConfig, stages: Mapping[str, Finished]) -> tuple[Measured, Measured]:
    """The two figures of a run; NaN where a stage is not among the finished or has none."""
    return figure(finding.left, stages), figure(finding.right, stages)


def figure(term: str, stages: Mapping[str, Finished]) -> Measured:
    """What a term of `FindingConfig` names; a number is itself."""
    match = TERM.fullmatch(term)
    if match is None:
        return Measured(float(term))
    stage, when, name = stages.get(match["stage"]), match["when"], match["figure"]
    if stage is None:
        return MISSING
    if when in ("training", "early"):
        return _trained(stage, name, early=when == "early")
    states = stage.record["evaluations"]
    if states:
        result = EvalResult.from_state(states[0 if when == "first" else -1])
        found = _number(result.as_dict().get(name))
        if found is not MISSING:
            return Measured(found.value, result.per_problem.get(name, {}))
    return _of_table(_table_of(stage), name)


def _figures(stage: Finished, *, trained: bool) -> set[str]:
    """Names of what a stage has logged, or evaluated and tabled."""
    if trained:
        return {name for record in _records(stage) for name in record}
    names: set[str] = set()
    for state in stage.record["evaluations"]:
        names |= EvalResult.from_state(state).as_dict().keys()
    return names | read_record(_table_of(stage)).keys()


def _table_of(stage: Finished) -> Path:
    if stage.artifact.kind == "table":
        return stage.artifact.path
    return stage.folder / "table.json"


def _of_table(path: Path, name: str) -> Measured:
    table = read_record(path)
    found: Any = table
    inner = name
    while isinstance(found, dict) and inner not in found and "/" in inner:
        key, _, inner = inner.partition("/")
        found = found.get(key)
    value = _number(found.get(inner) if isinstance(found, dict) else None)
    if value is MISSING:
        return MISSING
    parts = table.get("per_problem", {}).get(name, [])
    if isinstance(parts, list):  # in the order of this table, and of no other
        parts = {f"{path}, {number}": part for number, part in enumerate(parts)}
    return Measured(value.value, parts)


def _trained(stage: Finished, name: str, *, early: bool) -> Measured:
    """The mean of what the first or the last tenth of the steps has logged."""
    values = [record[name] for record in _records(stage) if record.get(name) is not None]
    count = -(-len(values) // 10)
    part = values[:count] if early else values[-count:]
    return Measured(fmean(part)) if part else MISSING


def _records(stage: Finished) -> list[dict[str, Any]]:
    return [record for _, record in logged(stage.folder / "metrics.jsonl")]


def _number(value: Any) -> Measured:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return Measured(float(value)) if known else MISSING
