"""Reward models: the likelihood of human or a judge's preferences, and of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.hf import Head
from r1train.data.preferences import Judgement
from r1train.learn.batch import micro_batches
from r1train.learn.learner import ScoreLearner
from r1train.model.packing import Packed, pack


def judgement_loss(scores: Tensor, good: Tensor) -> Tensor:
    """Loss [N] of N judgements.

    scores: float32 [N, 2], of the better response and of the worse: −log σ(r₀ − r₁), the model of
    Bradley and Terry (1952), as InstructGPT (arXiv 2203.02155, equation 1) has it. Or [N, 1]: the
    binary cross-entropy of `good`, float32 [N].
    """
    if scores.shape[1] == 2:
        return -F.logsigmoid(scores[:, 0] - scores[:, 1])
    return F.binary_cross_entropy_with_logits(scores[:, 0], good, reduction="none")


def margins(scores: Tensor, good: Tensor) -> Tensor:
    """How far each judgement [N] is on the right side: r₀ − r₁, or the logit of the label."""
    if scores.shape[1] == 2:
        return scores[:, 0] - scores[:, 1]
    return scores[:, 0] * (2 * good - 1)


class RewardLearner(ScoreLearner):
    """Trains `classifier`, whose backbone is the policy's: one `step` for each of `steps` batches.

    The judgements of a batch are all pairs, or all single responses.
    """

    def step(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """One optimizer step on their mean loss, whatever the micro-batches."""
        loss, margin, reward = self.accumulate(judgements)
        accuracy, mean = (margin > 0).float().mean(), margin.mean()
        return self.apply({"loss": loss, "accuracy": accuracy, "margin": mean, "reward": reward})

    def accumulate(self, judgements: Sequence[Judgement]) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the gradient of the mean loss; returns that [], the margins [N] and the mean score
        [], without their graphs."""
        total = torch.zeros((), device=self.policy.device)
        found: list[Tensor] = []
        rewards: list[Tensor] = []
        for _, packed, good in self._parts(judgements):

            def loss(
                hidden: Tensor, _: Head, packed: Packed = packed, good: Tensor = good
            ) -> tuple[Tensor, Tensor]:
                scores = self._scores(hidden, packed, len(good))
                return judgement_loss(scores, good).sum() / len(judgements), scores.detach()

            summed, scores = self.add(packed, loss)
            total += summed
            found.append(margins(scores, good))
            rewards.append(scores.flatten())
        return total, torch.cat(found), torch.cat(rewards).mean()

    def scores(self, judgements: Sequence[Judgement]) -> Tensor:
        """float32 [N, 2] of pairs, or [N, 1]: the score of every response, without gradients."""
        found = torch.empty(len(judgements), len(judgements[0].responses))
        for part, packed, good in self._parts(judgements):

            def read(
                hidden: Tensor, _: Head, packed: Packed = packed, n: int = len(good)
            ) -> Tensor:
                return self._scores(hidden, packed, n)

            found[part] = self.policy.run(packed, read).cpu()
        return found

    def _parts(self, judgements: Sequence[Judgement]) -> Iterator[tuple[list[int], Packed, Tensor]]:
        """Micro-batches: which judgements, their row, and whether each is good. A pair is in one.

        A response has one token more in the row than it has, so that its last one predicts
        something: that is where the score is read.
        """
        prompts = [one.prompt for one in judgements]
        together = [[id for ids in one.responses for id in [*ids, 0]] for one in judgements]
        for part in micro_batches(prompts, together, self.token_budget):
            chosen = [judgements[i] for i in part]
            packed = pack(
                [one.prompt for one in chosen for _ in one.responses],
                [[*ids, 0] for one in chosen for ids in one.responses],
                self.policy.device,
            )
            good = torch.tensor([one.good for one in chosen], device=self.policy.device)
            yield part, packed, good

    def _scores(self, hidden: Tensor, packed: Packed, count: int) -> Tensor:
        """[count, responses]: `score` of the state of each response's last token."""
        last = hidden.index_select(0, packed.cu_completions[1:].long() - 1)
        score: Any = self.classifier.score
        found: Tensor = score(last).float()
        return found.view(count, -1)
