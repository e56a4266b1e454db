"""The supervised phase: next-token prediction on worked solutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from r1kernels import linear_cross_entropy
from r1kernels.hf import Head
from r1train.config.sft import SFTConfig
from r1train.learn.learner import GradientLearner
from r1train.model.policy import Policy, copy

Loss: TypeAlias = tuple[Tensor, None]
IGNORED = -100  # a target that does not count


class SupervisedLearner(GradientLearner):
    """Next-token prediction on completions: one `step` for each of `steps` batches (unset: as many
    as the configuration says without knowing the data)."""

    def __init__(self, policy: Policy, config: SFTConfig, steps: int | None = None) -> None:
        steps = steps or config.steps()
        super().__init__(policy, policy.model, config, steps, int(config.warmup_ratio * steps))

    def step(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        learned: Sequence[Sequence[bool]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy of the tokens of the completions, or of
        those that are to be `learned`."""
        return self.apply({"loss": self.accumulate(prompts, completions, learned)})

    def accumulate(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        learned: Sequence[Sequence[bool]] | None = None,
    ) -> Tensor:
        """Adds the gradient of that mean, and what each expert had to do; returns the mean []."""
        total = torch.zeros((), device=self.policy.device)
        count = sum(map(len, completions)) if learned is None else sum(map(sum, learned))
        for rows, packed in self.batches(prompts, completions):
            wanted = packed.target
            if learned is not None:
                flags = torch.tensor([flag for row in rows for flag in learned[row]])
                wanted = wanted.masked_fill(~flags.to(wanted.device), IGNORED)

            def loss(hidden: Tensor, head: Head, target: Tensor = wanted) -> Loss:
                summed = linear_cross_entropy(
                    head.rows(hidden), head.weight, target, reduction="sum", **head.options
                )
                return summed / count, None

            mean, _ = self.add(packed, loss)
            total += mean
        return total

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: the weights too, all of it by name.

        Tensors are those in use: copy or write them before the next step.
        """
        return {"policy": self.policy.moving(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration must be the same."""
        copy(state["policy"], self.policy.moving())
        self.optimizer.load_state_dict(state["optimizer"])
