"""A run: the stages of a recipe in order, each in its folder, and what is said at the end."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.report.console import CONSOLE
from r1train.report.evaluation import EvalResult
from r1train.report.trackers import check_trackers
from r1train.run.artifacts import FILE, Finished, Plan, code_hash, plan
from r1train.run.checkpoint import CheckpointStore
from r1train.run.checksums import checksums
from r1train.run.choice import Choice, choose, described, take_up
from r1train.run.ending import finish
from r1train.run.export import save_checkpoint
from r1train.run.folder import PLAN, RunFolder
from r1train.run.signals import Signals, stopping_signals
from r1train.run.supplies import Supplies
from r1train.run.trainer import Trainer, log_evaluation
from r1train.seeds import derive_seed, deterministic
from r1train.stages import check_stages, kind_of
from r1train.stages.base import TrainStage
from r1train.stages.evaluate import evaluate_heldout


def run(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """The stages of `config` that are not finished yet; returns what summary.json holds.

    A run is in `output_dir/name`; where the folder of another is there, in `name-2` and so on.
    Finished stages with the same inputs are taken from those folders. With `resume` a run with the
    same inputs that was broken off is gone on with, where there is one.

    After Ctrl-C, SIGTERM or an error the folder has a checkpoint, plots and a summary that says so
    all the same, and the exception goes on to the caller. While they are written, a signal waits.
    """
    check_stages(config)
    plans = plan(config)
    return _start(config, plans, choose(config, plans, resume=resume))


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
    return _start(config, plans, choice)


def evaluate_model(config: Config) -> EvalResult:
    """`config.model` on the held-out problems of `config.task`."""
    (one,) = plan(replace(config, stages=(StageConfig("evaluate"),)))
    with deterministic(config.threads), ExitStack() as closing:
        context = Supplies(config.seed, {}, closing).context(one)
        return evaluate_heldout(context, derive_seed(config.seed, "eval"))


def _start(config: Config, plans: list[Plan], choice: Choice) -> dict[str, Any]:
    for note in choice.notes:
        CONSOLE.print(note, soft_wrap=True)
    if choice.folder is not None and len(choice.done) == len(plans):
        summary = RunFolder(choice.folder).summary()
        if summary is not None and not summary["interrupted"]:
            return summary  # else it was broken off after its last stage
    # Deterministic before CUDA starts: it is configured there.
    with stopping_signals() as signals, deterministic(config.threads), ExitStack() as closing:
        transformers_logging.disable_progress_bar()
        work = Run(config, plans, choice, signals, closing)
        with signals.held():
            try:
                with signals.released():  # in here alone: so no signal comes between the two
                    work.stages()
            except BaseException as error:
                work.finish(stopped_by=error)
                raise
            return work.finish()


class Run:
    """The stages of a run, one after the other, and what they leave in its folder."""

    def __init__(
        self,
        config: Config,
        plans: list[Plan],
        choice: Choice,
        signals: Signals,
        closing: ExitStack,
    ) -> None:
        check_trackers(config.report_to)
        self.config, self.plans, self.signals = config, plans, signals
        self.done = dict(choice.done)
        self.supplies = supplies = Supplies(config.seed, self.done, closing)
        self.trainer: Trainer | None = None  # at work
        self.checkpoint: Path | None = None
        self.evaluations: dict[str, list[EvalResult]] = {}
        self.warnings: list[str] = []
        self.started = time.perf_counter()
        waiting = [one for one in plans if one.name not in self.done]
        for one in filter(supplies.known, waiting):  # what is wrong is said before any is trained
            self._check(one)
        for one in waiting[:1]:  # before there is a folder: what is wrong leaves none behind
            supplies.loaded[one.name] = supplies.load(one)
        self.folder = RunFolder(choice.folder) if choice.folder else RunFolder.create(config)
        closing.enter_context(self.folder.locked())
        if choice.folder is None:
            self.folder.write(PLAN, described(plans))
        else:
            self.folder.report(config)
        for one in waiting[:1]:
            model, (train, heldout) = supplies.loaded[one.name][0], supplies.problems(one)
            CONSOLE.print(
                f"{config.name}: {model.num_parameters() / 1e6:.1f}M parameters on "
                f"{model.device}, seed {config.seed}, {len(train)} problems and {len(heldout)} "
                f"held out, in {self.folder.path}",
                soft_wrap=True,
            )

    def _check(self, one: Plan) -> None:
        """Data and rewards of a stage whose inputs are there."""
        train, _ = self.supplies.problems(one)
        kind_of(one.stage.kind).check(self.supplies.config(one), train)
        self.supplies.rewards(one)

    def stages(self) -> None:
        """Every stage in order; of one that is finished, what it left is taken."""
        for one in self.plans:
            if one.name in self.done:
                self._take(one, self.done[one.name])
            else:
                self._run(one)

    def _take(self, one: Plan, stage: Finished) -> None:
        """A finished stage, of this folder or of another; its lines are in the logs of both."""
        if stage.folder.parent.resolve() != self.folder.path.resolve():
            path = os.path.relpath(stage.artifact.path, self.folder.path / one.name)
            self.folder.copy_logs(stage.folder.parent, one.name)
            stage = self._write_record(one, {**stage.record, "path": path})
        self.done[one.name] = stage
        self.evaluations[one.name] = [
            EvalResult.from_state(result) for result in stage.record["evaluations"]
        ]
        self.warnings += stage.record["warnings"]
        if stage.artifact.kind == "checkpoint" and stage.there:
            self.checkpoint = self.folder.link(stage.artifact.path)

    def _run(self, one: Plan) -> None:
        """A stage to its end."""
        context = self.supplies.context(one)
        stage = kind_of(one.stage.kind)(context)
        record: dict[str, Any] = {
            "kind": stage.leaves,
            "evaluated": one.evaluated,
            "parameters": context.model.num_parameters(),
        }
        if isinstance(stage, TrainStage):
            trainer = self._train(one, stage)
            self.evaluations[one.name] = trainer.evaluations
            seconds, warnings = trainer.elapsed(), [*trainer.stall.said.values()]
            # Its checksums too: a signal that acted before the record is written would have the
            # stage saved once more, with its state, which takes longer than to read the model.
            with self.signals.held():
                path = self.folder.path / one.name / "checkpoint"
                save_checkpoint(stage.model, context.tokenizer, path)
                self.checkpoint, self.trainer = self.folder.link(path), None
                self.warnings += warnings
                self._record(one, record, path, seconds, warnings)
            return
        self.folder.begin(one.name)
        started = time.perf_counter()
        path = stage.run(self.folder.path / one.name)
        with self.signals.held():
            for result in stage.results:
                log_evaluation(self.folder, one.name, 0, result)
            self.evaluations[one.name] = stage.results
            seconds = time.perf_counter() - started
            self._record(one, record | {"evaluated": True}, path, seconds, [])

    def _train(self, one: Plan, stage: TrainStage) -> Trainer:
        seed = derive_seed(self.config.seed, "eval")  # of the run: all evaluations compare
        store = CheckpointStore(self.folder.path / one.name, self.config.keep_checkpoints)
        trainer = Trainer(
            stage,
            one.name,
            self.folder,
            store,
            self.signals,
            lambda: evaluate_heldout(stage.context, seed),
            ends_evaluated=one.evaluated,
        )
        if not trainer.restore():
            self.folder.begin(one.name)
        self.trainer = trainer  # not before: half restored, it would be saved in place of its last
        trainer.fit()
        return trainer

    def _record(
        self, one: Plan, record: dict[str, Any], left: Path, seconds: float, warnings: list[str]
    ) -> None:
        """The stage is finished, and has left this file or folder: from here on it is not repeated,
        unless what it left is no longer what it was."""
        evaluations = [result.state_dict() for result in self.evaluations[one.name]]
        self.done[one.name] = self._write_record(
            one,
            {
                **record,
                "path": left.name,
                "files": checksums(left),
                "code": code_hash(),
                "evaluations": evaluations,
                "warnings": warnings,
                "seconds": seconds,
            },
        )

    def _write_record(self, one: Plan, record: dict[str, Any]) -> Finished:
        record |= {"inputs_hash": one.inputs_hash, "inputs": one.inputs}
        (self.folder.path / one.name).mkdir(exist_ok=True)
        self.folder.sync(one.name)
        self.folder.write(f"{one.name}/{FILE}", json.dumps(record, indent=1) + "\n")
        self.folder.join()
        return Finished(self.folder.path / one.name, record)

    def finish(self, *, stopped_by: BaseException | None = None) -> dict[str, Any]:
        """What is said at the end; returns what summary.json holds."""
        trainer, warnings = self.trainer, list(self.warnings)
        parameters = [stage.record["parameters"] for stage in self.done.values()]
        if trainer is not None:  # it was broken off
            self.evaluations[trainer.name] = trainer.evaluations
            warnings += trainer.stall.said.values()
            parameters.append(trainer.stage.context.model.num_parameters())
        evaluated = [results for results in self.evaluations.values() if results]
        return finish(
            self.folder,
            {
                "name": self.config.name,
                "seed": self.config.seed,
                "folder": str(self.folder.path),
                "parameters": parameters[-1] if parameters else None,
                "seconds": time.perf_counter() - self.started,
                "stages": {name: stage.record["seconds"] for name, stage in self.done.items()},
                "warnings": warnings,
            },
            evaluated[-1] if evaluated else [],
            self.signals,
            stopped_by=stopped_by,
            save=self._save,
        )

    def _save(self) -> Path | None:
        """The newest model: of the stage that was broken off, or of the last that is finished."""
        if self.trainer is not None:
            self.checkpoint = None
            self.checkpoint = self.folder.link(self.trainer.save())
        return self.checkpoint
