"""AdamW, the learning-rate schedule and gradient clipping, for both training stages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from r1kernels.nn import FP8Optimizer, with_scales
from r1train.config.schema import ConfigError, RunError
from r1train.config.training import Schedule, TrainingConfig


class Diverged(RunError, FloatingPointError):
    """The gradient is not finite; the weights are those from before the update."""


class Optimizer:
    """AdamW whose learning rate warms up, then follows the schedule for `steps` updates.

    Weights that are FP8 codes, bfloat16 or float16 are stepped in a float32 copy and rounded again.
    The copy is made here and read back by `load_state_dict`: what is written into the model between
    two steps is overwritten by it.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, steps: int, warmup: int
    ) -> None:
        self.config, self.steps, self.warmup, self.done = config, steps, warmup, 0
        trained = with_scales(model)
        if not trained:
            raise ConfigError("none of the model's parameters is trainable: all are frozen")
        self.adamw = FP8Optimizer(
            torch.optim.AdamW,
            trained,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.parameters = self.adamw.param_groups[0]["params"]
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.names = [names[parameter] for parameter in self.parameters]
        for parameter in self.parameters:
            half = parameter.dtype in (torch.bfloat16, torch.float16)
            if half and not isinstance(parameter, DTensor):  # FSDP2 has a dtype of its own for it
                parameter.grad_dtype = torch.float32  # in which the parts of an update add up

    def clip(self) -> Tensor:
        """Clips the gradients; [], their norm before, which nobody has waited for."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        found: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return found

    def step(self, norm: float) -> dict[str, float]:
        """Applies and forgets the gradients, of this norm; returns it and the learning rate."""
        if not math.isfinite(norm):
            raise Diverged(
                f"the gradient norm of update {self.done + 1} is {norm}: lower learning_rate "
                f"(now {self.config.learning_rate:g}) or max_grad_norm"
            )
        rate = self._rate()
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.done += 1
        return {"grad_norm": norm, "learning_rate": rate}

    def skip(self) -> dict[str, float]:
        """An update without gradients: the schedule moves on, the weights stay."""
        rate = self._rate()
        self.done += 1
        return {"learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """Updates done, and of each parameter by name its moments and its float32 copy."""
        states = self.adamw.state_dict()["state"]
        by_name = {self.names[place]: state for place, state in states.items()}
        return {"done": self.done, "fp8_steps": self.adamw.steps, "parameters": by_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was made, from the same weights.

        Raises:
            KeyError: a parameter that the state knows is not trained here.
        """
        places = {name: place for place, name in enumerate(self.names)}
        whole = self.adamw.state_dict()
        whole["state"] = {places[name]: known for name, known in state["parameters"].items()}
        for group in whole["param_groups"]:
            group["fp8_steps"] = state["fp8_steps"]
        self.adamw.load_state_dict(whole)
        self.done = state["done"]

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
