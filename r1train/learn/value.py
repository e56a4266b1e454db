"""A value of every step: a score of the hidden state that has read the step's last token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from r1kernels.hf import Head
from r1train.config.process_reward import ProcessRewardConfig
from r1train.learn.batch import micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.metrics import Pending
from r1train.model.packing import Packed, pack
from r1train.model.policy import Policy, copy
from r1train.model.routing import recording
from r1train.model.scoring import scores


class ValueLearner:
    """Trains `classifier`, whose backbone is the policy's: one `step` for each of `steps` batches.

    The loss is the cross-entropy −v log p − (1 − v) log(1 − p) of a value v in [0, 1] and
    p = σ(score), a mean over all steps of a batch's solutions. It is least where p is v's mean.
    """

    def __init__(
        self, policy: Policy, classifier: PreTrainedModel, config: ProcessRewardConfig, steps: int
    ) -> None:
        self.policy, self.classifier, self.config = policy, classifier, config
        warmup = int(config.warmup_ratio * steps)
        self.optimizer = Optimizer(classifier, config, steps, warmup)
        self.load = ExpertLoad(policy.model, config.expert_bias_update_rate)

    def step(
        self,
        prompts: Sequence[Sequence[int]],
        solutions: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
        values: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        """One optimizer step; `values[i][j]` is that of the first `ends[i][j]` tokens of solution
        i. Logs the loss, and the mean squared error of p (`brier`)."""
        pending = Pending()
        loss, brier = self.accumulate(prompts, solutions, ends, values)
        pending.add(
            {
                "loss": loss,
                "brier": brier,
                "grad_norm": self.optimizer.clip(),
                **self.load.figures(),
            }
        )
        (figures,) = pending.read()
        self.load.step()
        mean = math.fsum(v for own in values for v in own) / sum(map(len, values))
        return figures | self.optimizer.step(figures["grad_norm"]) | {"value": mean}

    def accumulate(
        self,
        prompts: Sequence[Sequence[int]],
        solutions: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
        values: Sequence[Sequence[float]],
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the mean loss; returns that mean [] and the squared error's []."""
        count = sum(map(len, values))
        total = torch.zeros(2, device=self.policy.device)
        longer = extended(solutions)
        for rows in micro_batches(prompts, longer, self.config.token_budget):
            part = [prompts[row] for row in rows]
            packed = pack(part, [longer[row] for row in rows], self.policy.device)
            index = step_ends(packed, [ends[row] for row in rows])
            target = torch.tensor(
                [value for row in rows for value in values[row]], device=self.policy.device
            )

            def loss(
                hidden: Tensor, head: Head, index: Tensor = index, target: Tensor = target
            ) -> tuple[Tensor, Tensor]:
                logits = scores(self.classifier, hidden[index])
                summed = binary_cross_entropy_with_logits(logits, target, reduction="sum")
                return summed / count, (logits.detach().sigmoid() - target).square().sum() / count

            record = recording(self.policy.model)
            means = self.policy.accumulate(packed, loss, record)
            if record is not None:
                self.load.add(record.sequences(part))
            total += torch.stack(means)
        return total[0], total[1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, by name.

        Tensors are those in use: copy or write them before the next step.
        """
        return {"model": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration must be the same."""
        copy(state["model"], self.classifier.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])


def extended(solutions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each with a token more, which packing leaves out: so all of its own are read."""
    return [[*solution, solution[-1]] for solution in solutions]


def step_ends(batch: Packed, ends: Sequence[Sequence[int]]) -> Tensor:
    """int64 [S]: of the hidden states of a batch of `extended` solutions, those that have read the
    first `ends[i][j]` tokens of solution i."""
    starts = accumulate(map(len, batch.completions), initial=0)
    places = [start + end for start, own in zip(starts, ends, strict=False) for end in own]
    return torch.tensor(places, device=batch.target.device)


class StepValues:
    """What a trained model says of the steps of solutions.

    Args:
        policy: a causal LM around the backbone of `classifier`.
        classifier: what a ValueLearner has trained.
        token_budget: tokens of a pass; no value depends on it beyond rounding.
    """

    def __init__(
        self, policy: Policy, classifier: PreTrainedModel, token_budget: int = 16384
    ) -> None:
        self.policy, self.classifier, self.token_budget = policy, classifier, token_budget

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        solutions: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        """Of the first `ends[i][j]` tokens of solution i: the value, in [0, 1]."""
        found: dict[int, list[float]] = {}
        longer = extended(solutions)
        for rows in micro_batches(prompts, longer, self.token_budget):
            packed = pack(
                [prompts[row] for row in rows], [longer[row] for row in rows], self.policy.device
            )
            own = [ends[row] for row in rows]
            index = step_ends(packed, own)

            def values(hidden: Tensor, head: Head, index: Tensor = index) -> Tensor:
                return scores(self.classifier, hidden[index]).sigmoid()

            flat = iter(self.policy.run(packed, values).tolist())
            for row, places in zip(rows, own, strict=True):
                found[row] = [next(flat) for _ in places]
        return [found[row] for row in range(len(solutions))]

    def last(
        self, prompts: Sequence[Sequence[int]], solutions: Sequence[Sequence[int]]
    ) -> list[float]:
        """Of all tokens of each."""
        ends = [[len(solution)] for solution in solutions]
        return [value for (value,) in self(prompts, solutions, ends)]
