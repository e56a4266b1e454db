"""What learners have in common: gradients that add up over micro-batches, and the step they make;
of those that learn from rollouts, the minibatches of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf import Head
from r1train.config.distill import DistillConfig
from r1train.config.grpo import GRPOConfig
from r1train.config.process_reward import ProcessRewardConfig
from r1train.config.reward_model import RewardModelConfig
from r1train.config.training import TrainingConfig
from r1train.learn.batch import packed_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.metrics import Metrics, Pending
from r1train.model.packing import Packed
from r1train.model.policy import Policy, copy
from r1train.model.routing import recording

T = TypeVar("T")


class GradientLearner:
    """Makes optimizer steps on `trained`, which is the policy's model or what stands upon it."""

    def __init__(
        self,
        policy: Policy,
        trained: PreTrainedModel,
        config: TrainingConfig,
        steps: int,
        warmup: int,
    ) -> None:
        self.policy, self.token_budget = policy, config.token_budget
        self.optimizer = Optimizer(trained, config, steps, warmup)
        self.load = ExpertLoad(policy.model, config.expert_bias_update_rate)

    def batches(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], Packed]]:
        """Micro-batches: which rows, and these packed."""
        return packed_batches(prompts, completions, self.token_budget, self.policy.device)

    def add(
        self, packed: Packed, loss: Callable[[Tensor, Head], tuple[Tensor, T]]
    ) -> tuple[Tensor, T]:
        """Adds the gradient of a micro-batch, as `Policy.accumulate`, and what each expert had to
        do."""
        record = recording(self.policy.model)
        found = self.policy.accumulate(packed, loss, record)
        if record is not None:
            self.load.add(record.sequences([packed.prompts[i] for i in packed.prompt_index]))
        return found

    def apply(self, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """One optimizer step by what has been added; returns `figures` [] and its own, which the
        device is waited for once."""
        pending = Pending()
        pending.add({**figures, "grad_norm": self.optimizer.clip(), **self.load.figures()})
        (found,) = pending.read()
        self.load.step()
        return found | self.optimizer.step(found["grad_norm"])


class ScoreLearner(GradientLearner):
    """Of a `classifier`, whose backbone is the policy's: one step for each of `steps` batches."""

    def __init__(
        self,
        policy: Policy,
        classifier: PreTrainedModel,
        config: RewardModelConfig | ProcessRewardConfig,
        steps: int,
    ) -> None:
        super().__init__(policy, classifier, config, steps, int(config.warmup_ratio * steps))
        self.classifier = classifier

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, by name.

        Tensors are those in use: copy or write them before the next step.
        """
        return {"model": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration must be the same."""
        copy(state["model"], self.classifier.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass
class Work:
    """A rollout while it is learned from."""

    queue: list[Any]
    """Of each update to come, its rows."""
    metrics: Metrics

    def state_dict(self) -> dict[str, Any]:
        """All of it but what the rollout says."""
        return {"queue": self.queue, "metrics": self.metrics.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue = list(state["queue"])
        self.metrics.load_state_dict(state["metrics"])


W = TypeVar("W", bound=Work)


class RolloutLearner(GradientLearner, ABC, Generic[W]):
    """Learns from `config.max_steps` rollouts: from each in so many `passes`, each of them in
    `config.num_minibatches` updates."""

    def __init__(
        self,
        policy: Policy,
        config: GRPOConfig | DistillConfig,
        *,
        passes: int,
        temperature: float,
        seed: int,
    ) -> None:
        self.passes, self.parts = passes, config.num_minibatches
        self.updates = passes * self.parts  # of one rollout
        steps, warmup = config.max_steps * self.updates, config.warmup_steps * self.updates
        super().__init__(policy, policy.model, config, steps, warmup)
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(seed)  # order of the minibatches
        self.work: W | None = None

    @property
    def pending(self) -> int:
        """Updates that are still to be made of the rollout that was started."""
        return len(self.work.queue) if self.work is not None else 0

    def minibatches(self, size: int) -> Iterator[list[int]]:
        """The rows of each update, of a rollout of so many."""
        for _ in range(self.passes):
            order = torch.arange(size)
            if self.parts > 1:
                order = torch.randperm(size, generator=self.generator)
            for part in order.tensor_split(self.parts):
                yield part.tolist()

    @abstractmethod
    def update(self) -> None:
        """One optimizer step, on the next minibatch of the rollout that was started."""

    def rest(self) -> dict[str, float]:
        """Every update that is left of the rollout that was started; its figures."""
        while self.pending:
            self.update()
        return self.finish()

    def finish(self) -> dict[str, float]:
        """The figures of the rollout's updates, once none is pending."""
        assert self.work is not None  # start
        figures, self.work = self.work.metrics.values, None
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on but the rollout that was started: the weights
        too, all of it by name.

        Tensors are those in use: copy or write them before the next update.
        """
        return {
            "work": None if self.work is None else self.work.state_dict(),
            "policy": self.policy.moving(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made; the configuration must be the same, and a rollout
        that was started there be started here."""
        if self.work is not None:
            self.work.load_state_dict(state["work"])
        copy(state["policy"], self.policy.moving())
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
