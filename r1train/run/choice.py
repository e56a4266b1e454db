"""Which folder a run is in, and which of its stages are finished already."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.run.artifacts import Finished, Plan, difference, finished

PLAN = "plan.json"


@dataclass(frozen=True)
class Choice:
    """Where a run takes place, and what it need not do."""

    folder: Path | None
    """An existing one to go on in; None: a new one."""
    done: dict[str, Finished]
    """Stages by name that are finished with the same inputs, in this folder or in another."""
    notes: list[str] = field(default_factory=list)
    """Why stages are repeated, and what else the user may want to know."""


def choose(config: Config, plans: Sequence[Plan], *, resume: bool) -> Choice:
    """For `r1train run`: no run overwrites another, and none repeats what is finished.

    A run with the same inputs whose every stage is finished is chosen as it is. One that was broken
    off is gone on with where `resume` says so; else a new folder is made, and finished stages with
    the same inputs are taken from the folders that are there.
    """
    done: dict[str, Finished] = {}
    latest: dict[str, Finished] = {}
    notes: list[str] = []
    for folder in folders(config):
        there = finished(folder)
        latest |= there
        same = {plan.name: there[plan.name] for plan in plans if fits(plan, there)}
        done |= same
        if planned(folder) != _hashes(plans):
            continue
        if len(same) == len(plans):
            return Choice(folder, same, [f"{folder}: every stage is finished with these inputs"])
        if resume:
            return Choice(folder, same)
        notes.append(f"{folder} was broken off; to go on with it: r1train resume {folder}")
    for plan in plans:
        old = latest.get(plan.name)
        if plan.name in done:
            notes.append(
                f"{plan.name}: taken from {done[plan.name].folder}: its inputs are the same"
            )
        elif old is not None:
            changed = (
                difference(plan.inputs, old.record.get("inputs", {})) or "it was not evaluated"
            )
            notes.append(f"{plan.name}: run again, not taken from {old.folder}: {changed}")
    return Choice(None, done, notes)


def take_up(folder: Path, plans: Sequence[Plan]) -> Choice:
    """For `r1train resume`: the run in `folder`. Raises ConfigError where its inputs changed."""
    try:
        stages = json.loads((folder / PLAN).read_text())
        before = {stage["name"]: stage["inputs"] for stage in stages}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} is no run that can be gone on with: {PLAN} cannot be read ({error})"
        ) from None
    for plan in plans:
        changed = difference(plan.inputs, before.get(plan.name, {}))
        if changed:
            raise ConfigError(
                f"{folder}: stage {plan.name!r} cannot be gone on with, since {changed}; put it "
                "back as it was, or start anew with r1train run"
            )
    there = finished(folder)
    return Choice(folder, {plan.name: there[plan.name] for plan in plans if fits(plan, there)})


def fits(plan: Plan, there: dict[str, Finished]) -> bool:
    """Whether a stage of that name is finished there, made of the same."""
    stage = there.get(plan.name)
    return (
        stage is not None
        and stage.artifact.inputs_hash == plan.inputs_hash
        and (stage.record.get("evaluated", False) or not plan.evaluated)
    )


def folders(config: Config) -> Iterator[Path]:
    """The run folders of that name that are there, oldest first."""
    path, number = Path(config.output_dir) / config.name, 1
    while path.is_dir():
        yield path
        number += 1
        path = path.with_name(f"{config.name}-{number}")


def described(plans: Sequence[Plan]) -> str:
    """plan.json: what every stage is made from."""
    stages = [
        {"name": plan.name, "inputs_hash": plan.inputs_hash, "inputs": plan.inputs}
        for plan in plans
    ]
    return json.dumps(stages, indent=1) + "\n"


def planned(folder: Path) -> list[list[str]] | None:
    """Names and hashes of the stages of a run, as it was started."""
    try:
        stages = json.loads((folder / PLAN).read_text())
        return [[stage["name"], stage["inputs_hash"]] for stage in stages]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hashes(plans: Sequence[Plan]) -> list[list[str]]:
    return [[plan.name, plan.inputs_hash] for plan in plans]
