"""The loop of every training stage, and how it is taken up where it was left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from r1train.report.console import CONSOLE, ProgressBar, unless_nan
from r1train.report.evaluation import EvalResult
from r1train.run.checkpoint import CheckpointStore
from r1train.run.export import write_model
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals
from r1train.run.stall import Stall
from r1train.stages.base import TrainStage

SAVE_SECONDS = 120.0  # between checkpoints, where `save_steps` is unset


class Trainer:
    """Brings one stage to its end, from wherever its last checkpoint left it.

    Signals act while a stage prepares an update and while held-out problems are evaluated, where
    everything is as the last update left it; in an update, and until it is logged, they wait.
    """

    def __init__(
        self,
        stage: TrainStage,
        name: str,
        folder: RunFolder,
        store: CheckpointStore,
        signals: Signals,
        evaluator: Callable[[], EvalResult],
        *,
        ends_evaluated: bool,
    ) -> None:
        self.stage, self.name, self.folder, self.store = stage, name, folder, store
        self.signals, self.evaluator, self.ends_evaluated = signals, evaluator, ends_evaluated
        self.evaluations: list[EvalResult] = []
        self.evaluated = -1  # the last step that was
        self.stall = Stall()
        self.whole = True  # nothing is half done: the stage can be saved as it is
        self.seconds = 0.0  # of earlier processes
        self.started = self.saved = time.perf_counter()

    def fit(self) -> None:
        """Trains until the stage is done."""
        stage = self.stage
        with ProgressBar(self.name, stage.max_steps, done=stage.step) as bar:
            self._evaluate_where_due()
            while stage.step < stage.max_steps:
                stage.prepare()
                with self.signals.held():
                    self.whole = False
                    metrics = stage.update()
                    if metrics is not None:
                        self.folder.log(stage.step, metrics, stage=self.name)
                        self.stall.observe(stage.step, metrics)
                        bar.advance({name: metrics[name] for name in stage.shown})
                    self.whole = True
                self._evaluate_where_due()
                # With its evaluation: a step of which half is logged anew would be there twice.
                if self._save_is_due(metrics is not None):
                    self.save()

    def _evaluate_where_due(self) -> None:
        step, stage = self.stage.step, self.stage
        if self.evaluated == step or stage.place[1]:
            return
        due = stage.eval_steps > 0 and 0 < step < stage.max_steps and step % stage.eval_steps == 0
        if due or (self.ends_evaluated and step in (0, stage.max_steps)):
            self.evaluate()

    def evaluate(self) -> None:
        """Held-out evaluation, always with the same draws, so that evaluations compare."""
        result = self.evaluator()
        with self.signals.held():
            self.evaluations.append(result)
            log_evaluation(self.folder, self.name, self.stage.step, result)
            self.evaluated = self.stage.step

    def _save_is_due(self, complete: bool) -> bool:
        if self.stage.save_steps is None:
            return time.perf_counter() - self.saved >= SAVE_SECONDS
        every = self.stage.save_steps
        return complete and every > 0 and self.stage.step % every == 0

    def save(self) -> Path:
        """A checkpoint of where the stage is: to go on from, unless something is half done."""
        context = self.stage.context

        def models(folder: Path) -> None:
            write_model(self.stage.model, context.tokenizer, folder)

        with self.signals.held():
            state = self.state_dict() if self.whole else None
            path = self.store.save(self.stage.place, state, models)
        self.saved = time.perf_counter()
        return path

    def restore(self) -> bool:
        """Goes on from the newest checkpoint that is whole; False where there is none."""
        saved = self.store.restore(self.stage.context.model.device)
        if saved is None:
            return False
        self.load_state_dict(saved.state)
        step, updates = saved.place
        self.folder.resume(self.name, step, saved.state["log"])
        within = f", after {updates} updates of the next" * bool(updates)
        CONSOLE.print(f"{self.name}: goes on after step {step}{within}", soft_wrap=True)
        return True

    def elapsed(self) -> float:
        """Seconds of this stage, those of earlier processes too."""
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        devices = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {
            "stage": self.stage.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if devices else [],
            "log": self.folder.sizes(self.name),
            "evaluated": self.evaluated,
            "evaluations": [result.state_dict() for result in self.evaluations],
            "stall": self.stall.state_dict(),
            "seconds": self.elapsed(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stage.load_state_dict(state["stage"])
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all([one.cpu() for one in state["random_cuda"]])
        self.evaluated = state["evaluated"]
        self.evaluations = [EvalResult.from_state(one) for one in state["evaluations"]]
        self.stall.load_state_dict(state["stall"])
        self.seconds = state["seconds"]


def log_evaluation(folder: RunFolder, stage: str, step: int, result: EvalResult) -> None:
    """Its figures and samples into the run's logs, and pass@1 on the terminal."""
    figures = {f"eval/{name}": value for name, value in result.as_dict().items()}
    folder.log(step, figures, stage=stage)
    folder.log_samples(step, result.samples, stage=stage)
    share = unless_nan(result.pass_at_1, "{:.1%}")
    CONSOLE.print(f"{stage} step {step}: held-out pass@1 {share}")
