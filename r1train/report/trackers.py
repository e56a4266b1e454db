"""Experiment trackers that a run's figures go to as well: TensorBoard, trackio, Weights & Biases.

None is imported before a run asks for it. Each stage counts its own steps, so figures carry its
name: grpo/reward at step 3 of grpo.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from r1train.config.schema import ConfigError
from r1train.config.sections import Config

PROJECT = "r1train"


class Tracker(Protocol):
    """Made from a run's configuration and folder, and from the `id` of before where it goes on."""

    id: str | None
    """By which its service finds the run again; None where it needs none."""

    def resume(self, stage: str, step: int) -> None:
        """A stage goes on after this step: figures of later ones come again."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, whose names begin with the stage's."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """Event files in the run folder, in one of each stage: `tensorboard --logdir runs`.

    What comes again takes the place of what came from that step on in the same folder.
    """

    id: str | None = None

    def __init__(self, config: Config, folder: Path, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open: Any = SummaryWriter
        self.folder = folder / "tensorboard"
        self.text = "\n".join(f"    {key} = {value!r}" for key, value in asdict(config).items())
        self.writers: dict[str, Any] = {}
        self.first_steps: dict[str, int] = {}

    def resume(self, stage: str, step: int) -> None:
        self.first_steps[stage] = step + 1

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        if stage not in self.writers:
            first = self.first_steps.get(stage, 0)
            writer = self.open(self.folder / stage, flush_secs=10, purge_step=first)
            writer.add_text("config", self.text)
            self.writers[stage] = writer
        for name, value in figures.items():
            self.writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Trackio:
    """A run of the project "r1train", kept where trackio keeps them: `trackio show`."""

    def __init__(self, config: Config, folder: Path, known: str | None) -> None:
        import trackio

        resume = "allow" if known else "never"
        self.run: Any = trackio.init(
            project=PROJECT, name=known or folder.name, config=asdict(config), resume=resume
        )
        self.id: str | None = self.run.name  # another one where the folder's was taken

    def resume(self, stage: str, step: int) -> None:
        pass  # the same figures come again, at the same steps

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


class WeightsAndBiases:
    """A run of the project "r1train", or of WANDB_PROJECT; WANDB_MODE=offline keeps it here."""

    def __init__(self, config: Config, folder: Path, known: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        resume = {"id": known, "resume": "allow"} if known else {}
        self.run: Any = wandb.init(
            project=project, name=folder.name, config=asdict(config), dir=str(folder), **resume
        )
        self.id: str | None = self.run.id
        self.stages: set[str] = set()

    def resume(self, stage: str, step: int) -> None:
        pass  # the same figures come again, at the same steps

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        if stage not in self.stages:  # W&B's own step only rises, while every stage begins anew
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step")
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**figures, f"{stage}/step": step})

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[Trackio] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}
"""By the names of `report_to`, which are those of their packages."""


def check_trackers(names: Sequence[str]) -> None:
    """ConfigError where the package of one is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}")


class Trackers:
    """Those of a run. Once it has begun, what fails in one is warned of once and stops nothing."""

    def __init__(self) -> None:
        self.open_ones: dict[str, Tracker] = {}
        self.warned: set[str] = set()

    def open(self, config: Config, folder: Path, ids: Mapping[str, str]) -> None:
        """Start those of `config.report_to`, which go on with the runs of these `ids`.

        ConfigError where one is missing or refuses.
        """
        check_trackers(config.report_to)
        for name in config.report_to:
            try:
                self.open_ones[name] = TRACKERS[name](config, folder, ids.get(name))
            except Exception as error:  # of any package, of its login or its network
                self.close()
                reason = f"{type(error).__name__}: {error}"
                raise ConfigError(f"report_to: {name} cannot be started: {reason}") from error

    @property
    def ids(self) -> dict[str, str]:
        """Of those that have one, to `open` them again."""
        return {name: str(one.id) for name, one in self.open_ones.items() if one.id is not None}

    def resume(self, stage: str, step: int) -> None:
        """A stage goes on after this step."""
        for tracker in self.open_ones.values():
            tracker.resume(stage, step)

    def log(self, step: int, metrics: Mapping[str, Any], stage: str) -> None:
        """Tell each the figures that are finite numbers."""
        figures = {
            f"{stage}/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, tracker in self.open_ones.items():
            try:
                tracker.log(stage, step, figures)
            except Exception as error:
                self._warn(name, error)

    def close(self) -> None:
        """Let each finish; they are told nothing more."""
        open_ones, self.open_ones = self.open_ones, {}
        for name, tracker in open_ones.items():
            try:
                tracker.close()
            except Exception as error:
                self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self.warned:
            self.warned.add(name)
            logging.getLogger("r1train").warning(
                "%s is not told everything: %s: %s (metrics.jsonl is)",
                *(name, type(error).__name__, error),
            )
