"""The same recipe from several seeds, and what they show together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1train.config.recipe import load_config, to_toml
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.report.console import CONSOLE, show_findings
from r1train.report.findings import Finding, compare, markdown
from r1train.run.artifacts import Finished, finished, plan
from r1train.run.choice import broken_off, choose, folders
from r1train.run.ending import say_where, stopped
from r1train.run.figures import check_findings, measured, unknown
from r1train.run.folder import RunFolder
from r1train.run.runner import Run, in_processes
from r1train.run.signals import stopping_signals
from r1train.seeds import deterministic
from r1train.stages import check_stages


def run(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """A run for each of `config.seeds`, in a folder `seed-N` of the folder of all; returns what
    summary.json holds. Those that are finished are not repeated, nor are their stages; what failed
    is tried again."""
    check_stages(config)
    check_findings(config)
    same = [folder for folder in reversed(folders(config)) if _same(folder, config)]
    for folder in same:
        if resume or _complete(folder):
            return _run(config, RunFolder(folder))
    for folder in same:
        CONSOLE.print(broken_off(folder), soft_wrap=True)
    return _run(config, RunFolder.create(config), new=True)


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with all runs in `folder`."""
    config = load_config(folder / "config.toml")
    check_stages(config)
    check_findings(config)
    return _run(config, RunFolder(folder))


def of_seed(config: Config, seed: int, folder: Path) -> Config:
    """The run of one seed, as it can be run by itself."""
    return replace(
        config, seed=seed, name=f"seed-{seed}", output_dir=str(folder), seeds=(), findings=()
    )


def _run(config: Config, folder: RunFolder, *, new: bool = False) -> dict[str, Any]:
    started = time.perf_counter()
    with stopping_signals() as signals, deterministic(config.threads), ExitStack() as closing:
        closing.enter_context(folder.locked())
        runs: list[Run] = []
        try:
            for seed in config.seeds:
                own, others = of_seed(config, seed, folder.path), _siblings(config, folder, seed)
                plans = plan(own)
                choice = choose(own, plans, resume=True, others=others)
                for note in choice.notes:
                    CONSOLE.print(note, soft_wrap=True)
                runs.append(Run(own, plans, choice, signals, closing, alone=False))
        except BaseException:
            if new:  # no stage was begun: what is wrong leaves none behind
                shutil.rmtree(folder.path)
            raise
        stopped_by: BaseException | None = None
        with signals.held():
            try:
                with signals.released():
                    in_processes(runs, config, signals)
            except BaseException as error:
                stopped_by = error
                raise
            finally:
                summaries = [
                    one.finish(stopped_by=one.stopped_by(stopped_by), quiet=True) for one in runs
                ]
                summary = _conclude(config, folder, summaries, started, stopped_by)
        return summary


def _conclude(
    config: Config,
    folder: RunFolder,
    summaries: list[dict[str, Any]],
    started: float,
    stopped_by: BaseException | None,
) -> dict[str, Any]:
    """The findings of what is finished, on the terminal, as findings.md and in summary.json."""
    stages = [finished(folder.path / f"seed-{seed}") for seed in config.seeds]
    found = findings(config, stages)
    for some in stages:
        for text in unknown(config, some):
            CONSOLE.print(text, soft_wrap=True)
    summary: dict[str, Any] = {
        "name": config.name,
        "seeds": list(config.seeds),
        "folder": str(folder.path),
        "seconds": time.perf_counter() - started,
        "interrupted": False,
        "runs": {f"seed-{one['seed']}": one for one in summaries},
        "findings": [one.as_dict() for one in found],
    }
    if stopped_by is not None:
        summary |= stopped(stopped_by)
    folder.write_summary(summary)
    if found:
        folder.write("findings.md", markdown(found))
        show_findings(found)
    say_where(folder.path, summary)
    return summary


def findings(config: Config, runs: Sequence[Mapping[str, Finished]]) -> list[Finding]:
    """Each over the seeds, by the finished stages of their runs."""
    return [compare(one, [measured(one, stages) for stages in runs]) for one in config.findings]


def _same(folder: Path, config: Config) -> bool:
    """Whether that folder is of the same recipe, with all that it says."""
    try:
        other = load_config(folder / "config.toml")
    except ConfigError:
        return False
    return to_toml(replace(other, output_dir="")) == to_toml(replace(config, output_dir=""))


def _complete(folder: Path) -> bool:
    """Whether nothing is left but what failed, and what needs that, and none is at that again."""
    run = RunFolder(folder)
    summary = run.summary()
    return summary is not None and not summary.get("interrupted", True) and not run.at_work()


def _siblings(config: Config, folder: RunFolder, seed: int) -> list[Path]:
    """Where the same seed was run by another version of the recipe."""
    others = [path for path in folders(config) if path.resolve() != folder.path.resolve()]
    return [path / f"seed-{seed}" for path in others if (path / f"seed-{seed}").is_dir()]
