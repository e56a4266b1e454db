"""Supervised fine-tuning: a cold start, or what stands in for pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1train.learn.sft import Supervisor
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
            context.model,
            context.tokenizer,
            context.train,
            config.sft,
            template=config.task.prompt_template,
            seed=context.seed,
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
