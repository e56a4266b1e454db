"""A value of every step: a score of the hidden state that has read the step's last token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from r1kernels.hf import Head
from r1train.learn.batch import packed_batches
from r1train.learn.learner import ScoreLearner
from r1train.model.packing import Packed
from r1train.model.policy import Policy
from r1train.model.scoring import scores


class ValueLearner(ScoreLearner):
    """Trains `classifier`, whose backbone is the policy's: one `step` for each of `steps` batches.

    The loss is the cross-entropy −v log p − (1 − v) log(1 − p) of a value v in [0, 1] and
    p = σ(score), a mean over all steps of a batch's solutions. It is least where p is v's mean.
    """

    def step(
        self,
        prompts: Sequence[Sequence[int]],
        solutions: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
        values: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        """One optimizer step; `values[i][j]` is that of the first `ends[i][j]` tokens of solution
        i. Logs the loss, and the mean squared error of p (`brier`)."""
        loss, brier = self.accumulate(prompts, solutions, ends, values)
        mean = math.fsum(v for own in values for v in own) / sum(map(len, values))
        return self.apply({"loss": loss, "brier": brier}) | {"value": mean}

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
        for rows, packed in self.batches(prompts, longer):
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

            total += torch.stack(self.add(packed, loss))
        return total[0], total[1]


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
        batches = packed_batches(prompts, longer, self.token_budget, self.policy.device)
        for rows, packed in batches:
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
