"""Which folder a run is in, and which of its stages are finished already."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
    broken_off: dict[Path, dict[str, Finished]] = {}
    for folder in folders(config):
        there = finished(folder)
        latest |= there
        same = fitting(plans, there)
        done |= {name: stage for name, stage in same.items() if stage.there}
        if planned(folder) != _hashes(plans):
            continue
        if len(same) == len(plans):
            return Choice(folder, same, [f"{folder}: every stage is finished with these inputs"])
        if not out_of_order(plans, same):
            broken_off[folder] = same
    done = usable(plans, done)
    if resume and broken_off:
        newest, same = list(broken_off.items())[-1]
        return Choice(newest, {**done, **same})
    notes += [
        f"{folder} is at work, or was broken off; to go on with it: r1train resume {folder}"
        for folder in broken_off
    ]
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
    done = fitting(plans, finished(folder))
    if lost := out_of_order(plans, done):
        raise ConfigError(
            f"{folder}: what stage {lost!r} left is gone, and a stage that is not finished starts "
            "from it; put it back, or start anew with r1train run"
        )
    return Choice(folder, done)


def fitting(plans: Sequence[Plan], there: Mapping[str, Finished]) -> dict[str, Finished]:
    """Those of a folder's finished stages that need not be repeated."""
    return usable(plans, {plan.name: there[plan.name] for plan in plans if fits(plan, there)})


def usable(plans: Sequence[Plan], done: dict[str, Finished]) -> dict[str, Finished]:
    """Those of the finished stages that need not be repeated: a model that is gone does no harm
    unless a stage that waits starts from it, or it is the run's last."""
    kept = dict(done)
    for plan in reversed(plans):
        if plan.name not in kept or kept[plan.name].there:
            continue
        starts = [p for p in plans if p.name not in kept and p.init is plan]
        if starts or plan is plans[-1]:
            del kept[plan.name]
    return kept


def out_of_order(plans: Sequence[Plan], done: Mapping[str, Finished]) -> str | None:
    """A stage to be repeated before one that is finished, whose lines in the logs come after its
    own; None where there is none."""
    waiting = None
    for plan in plans:
        if plan.name not in done:
            waiting = waiting or plan.name
        elif waiting is not None:
            return waiting
    return None


def fits(plan: Plan, there: Mapping[str, Finished]) -> bool:
    """Whether a stage of that name is finished there, made of the same."""
    stage = there.get(plan.name)
    return (
        stage is not None
        and stage.artifact.inputs_hash == plan.inputs_hash
        and (stage.record.get("evaluated", False) or not plan.evaluated)
    )


def folders(config: Config) -> list[Path]:
    """The run folders of that name that are there, by their numbers."""
    numbered = {
        int(path.name[len(config.name) + 1 :] or 1): path
        for path in Path(config.output_dir).glob("*")
        if path.is_dir()
        and (path.name == config.name or re.fullmatch(re.escape(config.name) + r"-\d+", path.name))
    }
    return [numbered[number] for number in sorted(numbered)]


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
