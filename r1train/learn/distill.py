"""On-policy distillation: from a student's rollout and a teacher to new weights of the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from r1kernels import ReverseKL, linear_reverse_kl
from r1kernels.hf import Head
from r1train.config.distill import DistillConfig
from r1train.engine.base import Rollout
from r1train.learn.batch import micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.metrics import Metrics, Pending
from r1train.model.packing import pack
from r1train.model.policy import Policy, copy
from r1train.model.routing import recording


@dataclass
class Work:
    """A rollout while it is learned from."""

    rollout: Rollout
    queue: list[list[int]]
    """The rows of each update to come."""
    metrics: Metrics = field(default_factory=Metrics)


class OnPolicyDistiller:
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
        self.policy, self.teacher = policy, teacher
        self.config, self.temperature = config, temperature
        self.updates = config.num_minibatches  # of one rollout
        warmup = config.warmup_steps * self.updates
        self.optimizer = Optimizer(policy.model, config, config.max_steps * self.updates, warmup)
        self.load = ExpertLoad(policy.model, config.expert_bias_update_rate)
        self.generator = torch.Generator().manual_seed(seed)  # order of the minibatches
        self.work: Work | None = None

    def step(self, rollout: Rollout) -> dict[str, float]:
        """Every update of one rollout."""
        self.start(rollout)
        while self.pending:
            self.update()
        return self.finish()

    @property
    def pending(self) -> int:
        """Updates that are still to be made of the rollout that was started."""
        return len(self.work.queue) if self.work is not None else 0

    def start(self, rollout: Rollout) -> None:
        """Takes a rollout to be learned from. The weights change with the first `update`."""
        order = torch.arange(len(rollout))
        if self.updates > 1:
            order = torch.randperm(len(rollout), generator=self.generator)
        queue: list[list[int]] = [part.tolist() for part in order.tensor_split(self.updates)]
        self.work = Work(rollout, queue)

    def update(self) -> None:
        """One optimizer step, on the next minibatch of the rollout that was started."""
        work = self.work
        assert work is not None  # start
        rows = work.queue.pop(0)
        prompts = [work.rollout.prompt_ids[row] for row in rows]
        completions = [work.rollout.completion_ids[row] for row in rows]
        pending = Pending()
        figures = self.accumulate(prompts, completions)
        pending.add({**figures, "grad_norm": self.optimizer.clip(), **self.load.figures()})
        (found,) = pending.read()
        self.load.step()
        work.metrics.add(found | self.optimizer.step(found["grad_norm"]))

    def finish(self) -> dict[str, float]:
        """The figures of the rollout's updates, once none is pending."""
        assert self.work is not None  # start
        figures, self.work = self.work.metrics.values, None
        return figures

    def accumulate(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Adds the gradient of the mean divergence, and what each expert had to do.

        Returns `kl` and `entropy` [], means over the tokens of the completions; the entropy is the
        student's.
        """
        count = sum(map(len, completions))
        totals = torch.zeros(2, device=self.policy.device)
        for rows in micro_batches(prompts, completions, self.config.token_budget):
            part = [prompts[row] for row in rows]
            packed = pack(part, [completions[row] for row in rows], self.policy.device)
            goal = self.teacher.run(packed, lambda hidden, head: (head.rows(hidden), head))

            def loss(
                hidden: Tensor, head: Head, goal: tuple[Tensor, Head] = goal
            ) -> tuple[Tensor, ReverseKL]:
                found = divergence(head.rows(hidden), head, *goal, self.temperature)
                return found.kl.sum() / count, found

            record = recording(self.policy.model)
            mean, found = self.policy.accumulate(packed, loss, record)
            if record is not None:
                self.load.add(record.sequences(part))
            totals += torch.stack([mean, found.entropy.sum() / count])
        kl, entropy = totals.unbind()
        return {"kl": kl, "entropy": entropy}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on but the rollout that was started: the weights
        too, all of it by name.

        Tensors are those in use: copy or write them before the next update.
        """
        work = self.work
        return {
            "work": None
            if work is None
            else {"queue": work.queue, "metrics": work.metrics.state_dict()},
            "policy": self.policy.moving(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration and the teacher must be the same,
        and a rollout that was started there be started here."""
        if self.work is not None:
            self.work.queue = [list(rows) for rows in state["work"]["queue"]]
            self.work.metrics.load_state_dict(state["work"]["metrics"])
        copy(state["policy"], self.policy.moving())
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


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
