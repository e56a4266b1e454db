"""One stage of a run, from its inputs to the record that says that it is finished."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from r1train.report.console import show_counts
from r1train.report.evaluation import EvalResult
from r1train.run.artifacts import FILE, Finished, Plan, code_hash
from r1train.run.checkpoint import CheckpointStore
from r1train.run.checksums import checksums
from r1train.run.export import save_checkpoint
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals
from r1train.run.supplies import Supplies
from r1train.run.trainer import Trainer, log_evaluation
from r1train.seeds import derive_seed
from r1train.stages import kind_of
from r1train.stages.base import TrainStage
from r1train.stages.evaluate import check_reached, evaluate_heldout
from r1train.stages.table import write_table


class StageRun:
    """A stage at work in a run's folder; those that it needs are finished."""

    def __init__(self, one: Plan, folder: RunFolder, supplies: Supplies, signals: Signals) -> None:
        self.one, self.folder, self.supplies, self.signals = one, folder, supplies, signals
        self.trainer: Trainer | None = None
        """Of a stage that trains, while it does."""
        self.finished: Finished | None = None

    def run(self) -> Finished:
        """To its end, from wherever a checkpoint has it."""
        one = self.one
        torch.manual_seed(one.seed)  # whatever was drawn before it, in this process or another
        context = self.supplies.context(one)
        stage = kind_of(one.stage.kind)(context)
        record: dict[str, Any] = {
            "kind": stage.leaves,
            "evaluated": one.evaluated,
            "parameters": context.model.num_parameters(),
        }
        if isinstance(stage, TrainStage):
            trainer = self._train(stage)
            if one.evaluated and trainer.evaluations:
                check_reached(trainer.evaluations[-1], one.config.eval)
            if figures := stage.table():
                write_table(self.folder.path / one.name, figures)
                show_counts(one.name, figures)
            seconds, warnings = trainer.elapsed(), [*trainer.stall.said.values()]
            # Its checksums too: a signal that acted before the record is written would have the
            # stage saved once more, with its state, which takes longer than to read the model.
            with self.signals.held():
                path = self.folder.path / one.name / "checkpoint"
                save_checkpoint(stage.model, context.tokenizer, path)
                self.trainer = None
                return self._record(record, path, trainer.evaluations, seconds, warnings)
        self.folder.begin(one.name)
        started = time.perf_counter()
        path = stage.run(self.folder.path / one.name)
        with self.signals.held():
            for result in stage.results:
                log_evaluation(self.folder, one.name, 0, result)
            seconds = time.perf_counter() - started
            return self._record(record | {"evaluated": True}, path, stage.results, seconds, [])

    def save(self) -> Path | None:
        """A checkpoint of a stage that is broken off; None where it has nothing to save."""
        return self.trainer.save() if self.trainer is not None else None

    def _train(self, stage: TrainStage) -> Trainer:
        name, config = self.one.name, self.one.config
        seed = derive_seed(config.seed, "eval")  # of the run: all evaluations compare
        trainer = Trainer(
            stage,
            name,
            self.folder,
            CheckpointStore(self.folder.path / name, config.keep_checkpoints),
            self.signals,
            lambda: evaluate_heldout(stage.context, seed),
            ends_evaluated=self.one.evaluated,
        )
        if not trainer.restore():
            self.folder.begin(name)
        self.trainer = trainer  # not before: half restored, it would be saved in place of its last
        trainer.fit()
        return trainer

    def _record(
        self,
        record: dict[str, Any],
        left: Path,
        evaluations: list[EvalResult],
        seconds: float,
        warnings: list[str],
    ) -> Finished:
        """The stage is finished, and has left this file or folder: from here on it is not repeated,
        unless what it left is no longer what it was."""
        self.finished = write_record(
            self.folder,
            self.one,
            {
                **record,
                "path": left.name,
                "files": checksums(left),
                "code": code_hash(),
                "evaluations": [result.state_dict() for result in evaluations],
                "warnings": warnings,
                "seconds": seconds,
            },
        )
        return self.finished


def write_record(folder: RunFolder, one: Plan, record: dict[str, Any]) -> Finished:
    """artifact.json of a stage, once everything that it has logged is on the disk."""
    record |= {"inputs_hash": one.inputs_hash, "inputs": one.inputs}
    (folder.path / one.name).mkdir(exist_ok=True)
    folder.sync(one.name)
    folder.write(f"{one.name}/{FILE}", json.dumps(record, indent=1) + "\n")
    return Finished(folder.path / one.name, record)
