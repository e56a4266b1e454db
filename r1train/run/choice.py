"""Which folder a run is in, and which of its stages are finished already."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.run.artifacts import Finished, Plan, code_hash, difference, finished
from r1train.run.folder import PLAN, RunFolder


@dataclass(frozen=True)
class Choice:
    """Where a run takes place, and what it need not do."""

    folder: Path | None
    """An existing one to go on in; None: a new one."""
    done: dict[str, Finished]
    """Stages by name that are finished with the same inputs, in this folder or in another."""
    notes: list[str] = field(default_factory=list)
    """Why stages are repeated, and what else the user may want to know."""


def choose(
    config: Config, plans: Sequence[Plan], *, resume: bool, others: Sequence[Path] = ()
) -> Choice:
    """For `r1train run`: no run overwrites another, and none repeats what is finished.

    A run with the same inputs whose every stage is finished is chosen as it is. One that failed is
    gone on with, and one that was broken off where `resume` says so; else a new folder is made, and
    finished stages with the same inputs are taken from the folders that are there, and from those
    of `others`.
    """
    known = [finished(folder) for folder in reversed(others)]
    notes: list[str] = []
    begun: dict[Path, dict[str, Finished]] = {}
    for folder in folders(config):
        known.insert(0, finished(folder))
        if planned(folder) != _hashes(plans):
            continue
        same = usable(plans, known[:1])
        if len(same) == len(plans):
            notes = [f"{folder}: every stage is finished with these inputs", *other_code(same)]
            return Choice(folder, same, notes)
        begun[folder] = same
    done = usable(plans, known)
    for folder in reversed(begun):
        reason = failure(folder)
        if resume or reason:
            notes = [f"{folder} failed ({reason}): it is gone on with"] if reason else []
            return Choice(folder, {**done, **begun[folder]}, [*notes, *other_code(begun[folder])])
    notes += map(broken_off, begun)
    for plan in plans:
        old = next((there[plan.name] for there in known if plan.name in there), None)
        if plan.name in done:
            notes.append(
                f"{plan.name}: taken from {done[plan.name].folder}: its inputs are the same"
            )
        elif old is not None:
            notes.append(f"{plan.name}: run again, not taken from {old.folder}: {why(plan, old)}")
    return Choice(None, done, [*notes, *other_code(done)])


def failure(folder: Path) -> str | None:
    """Why the run in a folder failed; None where it did not, was broken off, or is at work again,
    when its summary still is what it was."""
    run = RunFolder(folder)
    summary = run.summary() or {}
    return None if summary.get("interrupted") or run.at_work() else summary.get("stopped_by")


def broken_off(folder: Path) -> str:
    """What is said of a run with the same inputs that is not gone on with."""
    return f"{folder} is at work, or was broken off; to go on with it: r1train resume {folder}"


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
    done = usable(plans, [there])
    again = [
        f"{plan.name}: run again: {why(plan, there[plan.name])}"
        for plan in plans
        if plan.name in there and plan.name not in done
    ]
    return Choice(folder, done, [*again, *other_code(done)])


def usable(plans: Sequence[Plan], known: Sequence[Mapping[str, Finished]]) -> dict[str, Finished]:
    """Those of the finished stages of some folders, the first of them first, that need not be
    repeated. A model that is gone or damaged does no harm unless a stage that waits starts from it,
    or it is the run's last: only such a one is read."""
    kept: dict[str, Finished] = {}
    for plan in reversed(plans):
        fit = [there[plan.name] for there in known if fits(plan, there)]
        needed = plan is plans[-1] or any(_needs(p, plan) and p.name not in kept for p in plans)
        found = next((stage for stage in fit if not needed or stage.fault is None), None)
        if found is not None:
            kept[plan.name] = found
    return kept


def _needs(one: Plan, other: Plan) -> bool:
    return any(needed is other for needed in one.needs)


def fits(plan: Plan, there: Mapping[str, Finished]) -> bool:
    """Whether a stage of that name is finished there, made of the same."""
    stage = there.get(plan.name)
    return (
        stage is not None
        and stage.artifact.inputs_hash == plan.inputs_hash
        and (stage.record.get("evaluated", False) or not plan.evaluated)
    )


def why(plan: Plan, old: Finished) -> str:
    """Why a finished stage is repeated."""
    changed = difference(plan.inputs, old.record.get("inputs", {}))
    return changed or old.fault or "it was not evaluated"


def other_code(done: Mapping[str, Finished]) -> list[str]:
    """What is said of stages that were finished by another version of this program."""
    return [
        f"{stage.folder}: finished by other code than this, and not repeated for that; choose "
        "another output_dir to repeat it"
        for stage in done.values()
        if stage.record.get("code") != code_hash()
    ]


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
