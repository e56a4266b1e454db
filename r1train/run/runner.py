"""A run: the stages of a recipe, each in its folder, and what is said at the end."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError, RunError, shown
from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.data.problems import check_files
from r1train.report.console import CONSOLE
from r1train.report.evaluation import EvalResult
from r1train.report.trackers import check_trackers
from r1train.run.artifacts import Finished, Plan, finished, plan
from r1train.run.choice import Choice, choose, described, take_up
from r1train.run.ending import finish
from r1train.run.folder import PLAN, RunFolder
from r1train.run.references import references
from r1train.run.schedule import Schedule
from r1train.run.signals import Signals, stopping_signals
from r1train.run.stage_run import StageRun, write_record
from r1train.run.supplies import Supplies
from r1train.run.worker import Job
from r1train.seeds import derive_seed, deterministic
from r1train.stages import check_stages, kind_of
from r1train.stages.evaluate import evaluate_heldout


def run(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """The stages of `config` that are not finished yet; returns what summary.json holds.

    A run is in `output_dir/name`; where the folder of another is there, in `name-2` and so on.
    Finished stages with the same inputs are taken from those folders. A run with the same inputs of
    which a stage failed is gone on with, where there is one, and with `resume` one that was broken
    off.

    After Ctrl-C, SIGTERM or an error the folder has a checkpoint, plots and a summary that says so
    all the same, and the exception goes on to the caller. While they are written, a signal waits.
    """
    check_stages(config)
    plans = plan(config)
    return start(config, plans, choose(config, plans, resume=resume))


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with the run in `folder`, from its last checkpoint that is whole.

    What comes is what would have come without a break: bit for bit on a CPU. Raises ConfigError
    where there is no such run, or where its data or options are no longer what they were.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.toml")
    config = load_config(folder / "config.toml")
    check_stages(config)
    plans = plan(config)
    choice = take_up(folder, plans)
    if len(choice.done) == len(plans):
        choice.notes.append(f"{folder}: every stage is finished")
    return start(config, plans, choice)


def evaluate_model(config: Config) -> EvalResult:
    """`config.model` on the held-out problems of `config.task`."""
    (one,) = plan(replace(config, stages=(StageConfig("evaluate"),)))
    with deterministic(config.threads), ExitStack() as closing:
        context = Supplies(config.seed, {}, closing).context(one)
        return evaluate_heldout(context, derive_seed(config.seed, "eval"))


def start(config: Config, plans: list[Plan], choice: Choice) -> dict[str, Any]:
    """The stages that the choice leaves to be done, one by one or in several processes."""
    for note in choice.notes:
        CONSOLE.print(note, soft_wrap=True)
    if choice.folder is not None and len(choice.done) == len(plans):
        summary = RunFolder(choice.folder).summary()
        if summary is not None and "stopped_by" not in summary:
            return summary  # else it was broken off after its last stage
    # Deterministic before CUDA starts: it is configured there.
    with stopping_signals() as signals, deterministic(config.threads), ExitStack() as closing:
        transformers_logging.disable_progress_bar()
        work = Run(config, plans, choice, signals, closing, alone=config.processes == 1)
        with signals.held():
            try:
                with signals.released():  # in here alone: so no signal comes between the two
                    if config.processes > 1:
                        in_processes([work], config, signals)
                    else:
                        work.stages()
            except BaseException as error:
                work.finish(stopped_by=error)
                raise
            return work.finish()


def in_processes(runs: list[Run], config: Config, signals: Signals) -> None:
    """What is left of some runs, `config.processes` stages at a time.

    Raises RunError where stages failed, once all that does not need them is done.
    """
    by_folder = {work.folder.path: work for work in runs}
    needs = {job: needed for work in runs for job, needed in work.jobs().items()}

    def started(job: Job) -> None:
        CONSOLE.print(f"{_title(job, runs)}: begins", soft_wrap=True)

    def ended(job: Job, failure: str | None) -> None:
        if failure is not None:
            by_folder[job.folder].failures[job.stage] = failure
            CONSOLE.print(f"{_title(job, runs)}: {failure}", soft_wrap=True)
            return
        said = by_folder[job.folder].take(job.stage)
        CONSOLE.print(f"{_title(job, runs)}: {said}", soft_wrap=True)

    threads = config.threads or os.cpu_count() or 1  # set where there are several processes
    locks = [work.lock for work in runs]
    Schedule(needs, started, ended).run(config.processes, threads, signals, locks)
    failed = [
        f"{_title(Job(work.folder.path, name), runs)}: {reason}"
        for work in runs
        for name, reason in work.failures.items()
    ]
    if failed:
        raise RunError("; ".join(failed))


def _title(job: Job, runs: list[Run]) -> str:
    return f"{job.folder.name} · {job.stage}" if len(runs) > 1 else job.stage


class Run:
    """The stages of a run, and what they leave in its folder."""

    def __init__(
        self,
        config: Config,
        plans: list[Plan],
        choice: Choice,
        signals: Signals,
        closing: ExitStack,
        *,
        alone: bool,
    ) -> None:
        """`alone`: its stages are run by this process, which has the model of the first at once."""
        check_trackers(config.report_to)
        self.config, self.plans, self.signals = config, plans, signals
        self.done = dict(choice.done)
        self.failures: dict[str, str] = {}  # stages by name that failed in another process, and why
        self.work: StageRun | None = None  # a stage that this process is at
        self.checkpoint: Path | None = None
        self.started = time.perf_counter()
        waiting = [one for one in plans if one.name not in self.done]
        with ExitStack() as checking:  # of stages in other processes nothing is needed any more
            keeping = closing if alone else checking
            self.supplies = supplies = Supplies(config.seed, self.done, keeping)
            for one in waiting:  # what is wrong is said before training
                self._check(one)
        loaded = waiting[:1] if alone else []
        for one in loaded:  # before there is a folder: what is wrong leaves none behind
            supplies.loaded[one.name] = supplies.load(one)
        self.folder = RunFolder(choice.folder) if choice.folder else RunFolder.create(config)
        self.lock = closing.enter_context(self.folder.locked())
        if choice.folder is None:
            self.folder.write(PLAN, described(plans))
        self.folder.report(config)
        for one in loaded:
            model, (train, heldout) = supplies.loaded[one.name][0], supplies.problems(one)
            CONSOLE.print(
                f"{config.name}: {model.num_parameters() / 1e6:.1f}M parameters on "
                f"{model.device}, seed {config.seed}, {len(train)} problems and {len(heldout)} "
                f"held out, in {self.folder.path}",
                soft_wrap=True,
            )
        for one in (one for one in plans if one.name in self.done):
            self._copy(one, self.done[one.name])

    def _check(self, one: Plan) -> None:
        """Data of a stage, as far as they are there; and where all of its inputs are, its rewards
        and what else can be known. Raises ConfigError, which names the stage."""
        config, kind = self.supplies.config(one), kind_of(one.stage.kind)
        try:
            if any(references(config.task, "task")):
                check_files(config.task)
            else:
                train, _ = self.supplies.problems(one)
            kind.check_files(config)
            if self.supplies.known(one):
                kind.check(config, train)
                self.supplies.rewards(one)
        except ConfigError as error:
            raise ConfigError(f"stage {shown(one.name)}: {error}") from None

    def _copy(self, one: Plan, stage: Finished) -> None:
        """Of a stage that was finished in another folder: its logs, and where its artifact is."""
        if stage.folder.parent.resolve() == self.folder.path.resolve():
            return
        path = os.path.relpath(stage.artifact.path, self.folder.path / one.name)
        self.folder.copy_logs(stage.folder.parent, one.name)
        self.done[one.name] = write_record(self.folder, one, {**stage.record, "path": path})

    def stages(self) -> None:
        """Those that are left, one after the other."""
        for one in self.plans:
            if one.name not in self.done:
                self.work = StageRun(one, self.folder, self.supplies, self.signals)
                self.done[one.name] = self.work.run()
                self.folder.join()
                self.link()

    def jobs(self) -> dict[Job, list[Job]]:
        """Those that are left, and of them those that each needs."""
        left = {one.name: one for one in self.plans if one.name not in self.done}
        path = self.folder.path
        return {
            Job(path, name): [Job(path, need.name) for need in one.needs if need.name in left]
            for name, one in left.items()
        }

    def take(self, name: str) -> str:
        """A stage has been finished by another process; returns what is said of it."""
        stage = self.done[name] = finished(self.folder.path)[name]
        self.folder.track(name)
        self.folder.join()
        self.link()
        shares = [result.pass_at_1 for result in evaluations_of(stage) if result.verifiable]
        figures = " → ".join(f"{share:.1%}" for share in shares)
        said = f", held-out pass@1 {figures}" if figures else ""
        return f"finished in {stage.record['seconds']:.0f} s{said}"

    def stopped_by(self, error: BaseException | None) -> BaseException | None:
        """What ended this run, one of several that `error` ended: its own failures, or nothing
        where it is finished."""
        if self.failures:
            return RunError("; ".join(f"{name}: {why}" for name, why in self.failures.items()))
        return None if len(self.done) == len(self.plans) else error

    def link(self) -> None:
        """`checkpoint` leads to the model of the recipe's result, or of the last stage that has
        one, in the order of the recipe."""
        names = [self.config.result] if self.config.result else [one.name for one in self.plans]
        left = [self.done[name] for name in names if name in self.done]
        models = [stage for stage in left if stage.artifact.kind == "checkpoint" and stage.there]
        for stage in models[-1:]:
            self.checkpoint = self.folder.link(stage.artifact.path)

    def finish(
        self, *, stopped_by: BaseException | None = None, quiet: bool = False
    ) -> dict[str, Any]:
        """What is left and, unless `quiet`, said at the end; returns what summary.json holds."""
        if self.work is not None and self.work.finished is not None:
            # A signal that waited for the record is raised in place of what `run` returns.
            self.done[self.work.one.name] = self.work.finished
        ordered = [self.done[one.name] for one in self.plans if one.name in self.done]
        warnings = [text for stage in ordered for text in stage.record["warnings"]]
        parameters = [stage.record["parameters"] for stage in ordered]
        evaluations = [
            evaluations_of(stage) for stage in ordered if self.config.result in (None, stage.name)
        ]
        trainer = self.work.trainer if self.work is not None else None
        if trainer is not None:  # it was broken off
            evaluations.append(trainer.evaluations)
            warnings += trainer.stall.said.values()
            parameters.append(trainer.stage.context.model.num_parameters())
        evaluated = [results for results in evaluations if results]
        return finish(
            self.folder,
            {
                "name": self.config.name,
                "seed": self.config.seed,
                "folder": str(self.folder.path),
                "parameters": parameters[-1] if parameters else None,
                "seconds": time.perf_counter() - self.started,
                "stages": {stage.name: stage.record["seconds"] for stage in ordered},
                "warnings": warnings,
                "reference": self.config.reference.reported(),
            },
            evaluated[-1] if evaluated else [],
            self.signals,
            stopped_by=stopped_by,
            save=self._save,
            quiet=quiet,
        )

    def _save(self) -> Path | None:
        """The newest model: of the stage that was broken off, or of the last that is finished."""
        self.link()
        if self.work is not None and (trainer := self.work.trainer) is not None:
            self.checkpoint, path = None, trainer.save()
            if trainer.stage.leaves == "checkpoint":
                self.checkpoint = self.folder.link(path)
        return self.checkpoint


def evaluations_of(stage: Finished) -> list[EvalResult]:
    return [EvalResult.from_state(result) for result in stage.record["evaluations"]]
