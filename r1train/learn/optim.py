"""AdamW, the learning-rate schedule and gradient clipping, for both training stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from r1kernels.nn import FP8Optimizer, with_scales
from r1train.config.schema import ConfigError, RunError
from r1train.config.sections import GRPOConfig, Schedule, SFTConfig


class Diverged(RunError, FloatingPointError):
    """The gradient is not finite; the weights are those from before the update."""


class Optimizer:
    """AdamW whose learning rate warms up, then follows the schedule for `steps` updates.

    Weights that are FP8 codes are stepped in a float32 copy and quantized again.
    """

    def __init__(
        self, model: PreTrainedModel, config: GRPOConfig | SFTConfig, steps: int, warmup: int
    ) -> None:
        self.config, self.steps, self.warmup, self.done = config, steps, warmup, 0
        self.adamw = FP8Optimizer(
            torch.optim.AdamW,
            with_scales(model),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.parameters = self.adamw.param_groups[0]["params"]
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise ConfigError("none of the model's parameters is trainable: all are frozen")

    def step(self) -> dict[str, float]:
        """Clips, applies and clears the gradients; returns their norm and the learning rate."""
        config, rate = self.config, self._rate()
        for group in self.adamw.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(
                f"the gradient norm of update {self.done + 1} is {norm.item()}: lower "
                f"learning_rate (now {config.learning_rate:g}) or max_grad_norm"
            )
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.done += 1
        return {"grad_norm": norm.item(), "learning_rate": rate}

    def skip(self) -> dict[str, float]:
        """An update without gradients: the schedule moves on, the weights stay."""
        rate = self._rate()
        self.done += 1
        return {"learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """TEMPORARY until the learner branch."""
        state = self.adamw.state_dict()
        return {
            "done": self.done,
            "state": {str(k): v for k, v in state["state"].items()},
            "masters": state["fp8"]["masters"],
            "fp8_steps": state["fp8"]["steps"],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
        now = self.adamw.state_dict()
        now["state"] = {int(k): dict(v) for k, v in state["state"].items()}
        now["fp8"] = {"steps": state["fp8_steps"], "masters": state["masters"]}
        self.adamw.load_state_dict(now)

    def _rate(self) -> float:
        config = self.config
        shape = config.lr_scheduler_type, config.min_lr_rate
        return config.learning_rate * lr_share(self.done, self.steps, self.warmup, *shape)


def lr_share(step: int, steps: int, warmup: int, schedule: Schedule, min_rate: float) -> float:
    """Share of the peak rate at update `step`, from 0, of `steps`; it falls towards `min_rate`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (steps - warmup)  # < 1: the last update counts too
    if schedule == "constant":
        return 1.0
    decay = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return min_rate + (1 - min_rate) * decay
