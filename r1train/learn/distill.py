"""On-policy distillation: from a student's rollout and a teacher to new weights of the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1kernels import ReverseKL, linear_reverse_kl
from r1kernels.hf import Head
from r1train.config.distill import DistillConfig
from r1train.engine.base import Rollout
from r1train.learn import learner
from r1train.metrics import Metrics
from r1train.model.policy import Policy


@dataclass
class Work(learner.Work):
    """A rollout while it is learned from."""

    rollout: Rollout


class OnPolicyDistiller(learner.RolloutLearner[Work]):
    """Brings `policy`, on its own completions, nearer to `teacher`, whose vocabulary is the same.

    The loss of an update is the mean of KL(student ‖ teacher) over the tokens of its completions,
    of the distributions at `temperature`, at which the completions were sampled.
    """

    def __init__(
        self,
        policy: Policy,
        teacher: Policy,
        config: DistillConfig,
        *,
        temperature: float,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, config, passes=1, temperature=temperature, seed=seed)
        self.teacher = teacher

    def step(self, rollout: Rollout) -> dict[str, float]:
        """Every update of one rollout."""
        self.start(rollout)
        return self.rest()

    def start(self, rollout: Rollout) -> None:
        """Takes a rollout to be learned from. The weights change with the first `update`."""
        self.work = Work([*self.minibatches(len(rollout))], Metrics(), rollout)

    def update(self) -> None:
        work = self.work
        assert work is not None  # start
        rows = work.queue.pop(0)
        prompts = [work.rollout.prompt_ids[row] for row in rows]
        completions = [work.rollout.completion_ids[row] for row in rows]
        work.metrics.add(self.apply(self.accumulate(prompts, completions)))

    def accumulate(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Adds the gradient of the mean divergence, and what each expert had to do.

        Returns `kl` and `entropy` [], means over the tokens of the completions; the entropy is the
        student's.
        """
        count = sum(map(len, completions))
        totals = torch.zeros(2, device=self.policy.device)
        for _, packed in self.batches(prompts, completions):
            goal = self.teacher.run(packed, lambda hidden, head: (head.rows(hidden), head))

            def loss(
                hidden: Tensor, head: Head, goal: tuple[Tensor, Head] = goal
            ) -> tuple[Tensor, ReverseKL]:
                found = divergence(head.rows(hidden), head, *goal, self.temperature)
                return found.kl.sum() / count, found

            mean, found = self.add(packed, loss)
            totals += torch.stack([mean, found.entropy.sum() / count])
        kl, entropy = totals.unbind()
        return {"kl": kl, "entropy": entropy}


def divergence(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, temperature: float
) -> ReverseKL:
    """Of rows as the heads' weights take them. What only one of the weights has is padding."""
    sizes = len(head.weight), len(teacher_head.weight)
    options = {f"teacher_{name}": value for name, value in teacher_head.options.items()}
    return linear_reverse_kl(
        hidden,
        head.weight,
        teacher_hidden,
        teacher_head.weight.detach(),
        temperature=temperature,
        vocab_size=min(sizes) if sizes[0] != sizes[1] else None,
        **head.options,
        **options,
    )
