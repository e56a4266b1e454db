"""Supervised fine-tuning: a cold start, or what stands in for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1train.config.sections import Config
from r1train.data.demonstrations import Demonstrations, RecordedDemonstrations
from r1train.data.problems import ProblemSet
from r1train.data.sources import open_rows
from r1train.data.worked_solutions import WorkedSolutions, check_solutions
from r1train.learn.sft import Supervisor
from r1train.model.limits import positions
from r1train.stages.base import Context, TrainStage


class SFT(TrainStage):
    """Next-token prediction on demonstrations, `sft.max_steps` batches of them."""

    uses = ("task", "sft", "eval")
    shown = ("loss",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.max_steps, self.save_steps = config.sft.max_steps, config.sft.save_steps
        self.supervisor = Supervisor(
            context.model, context.tokenizer, demonstrations(context), config.sft
        )

    def update(self) -> dict[str, float]:
        metrics = self.supervisor.step()
        self.step += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "supervisor": self.supervisor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.supervisor.load_state_dict(state["supervisor"])


def check_demonstrations(config: Config, train: ProblemSet) -> None:
    """There is something to learn from: said before anything is loaded or trained."""
    for dataset in config.sft.datasets:
        open_rows(dataset.path)
    if not config.sft.datasets:
        check_solutions(train.sources)


def demonstrations(context: Context) -> Demonstrations:
    """Those of files, or worked solutions of the problems."""
    config, tokenizer, seed = context.config, context.tokenizer, context.seed
    if config.sft.datasets:
        limit = positions(context.model)
        return RecordedDemonstrations(
            config.sft, config.task, tokenizer, positions=limit, seed=seed
        )
    template = config.task.prompt_template
    return WorkedSolutions(context.train, config.sft, tokenizer, template=template, seed=seed)
