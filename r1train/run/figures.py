"""Figures of the stages of a run, by the terms that findings name them with."""

from __future__ import annotations

import json
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
from r1train.run.artifacts import Finished, finished

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


def measured(finding: FindingConfig, folder: Path) -> tuple[Measured, Measured]:
    """The two figures in the run in `folder`; NaN where a stage is not finished or has none."""
    stages = finished(folder)
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
            return Measured(found.value, result.per_problem.get(name, ()))
    table = stage.artifact.path if stage.artifact.kind == "table" else stage.folder / "table.json"
    return _of_table(table, name)


def _of_table(path: Path, name: str) -> Measured:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return MISSING
    found, inner = table, name
    while isinstance(found, dict) and inner not in found and "/" in inner:
        key, _, inner = inner.partition("/")
        found = found.get(key)
    parts = table.get("per_problem", {}).get(name, ())
    value = _number(found.get(inner) if isinstance(found, dict) else None)
    return Measured(value.value, parts)


def _trained(stage: Finished, name: str, *, early: bool) -> Measured:
    """The mean of what the first or the last tenth of the steps has logged."""
    try:
        lines = (stage.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return MISSING
    records = [json.loads(line) for line in lines]
    values = [record[name] for record in records if record.get(name) is not None]
    count = -(-len(values) // 10)
    part = values[:count] if early else values[-count:]
    return Measured(fmean(part)) if part else MISSING


def _number(value: Any) -> Measured:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return Measured(float(value)) if known else MISSING
