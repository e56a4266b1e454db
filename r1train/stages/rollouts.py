"""What stages have in common that learn from what their own model says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Generic, TypeVar

from r1train.config.distill import DistillConfig
from r1train.config.grpo import GRPOConfig
from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem
from r1train.engine.base import Rollout, Sampling, requests
from r1train.learn.learner import RolloutLearner
from r1train.metrics import Stopwatch, peak_memory_gib
from r1train.stages.base import Context, TrainStage


@dataclass(frozen=True)
class Work:
    """A rollout that is being learned from, and what its step took."""

    rollout: Rollout
    watch: Stopwatch

    def state_dict(self) -> dict[str, Any]:
        """To go on from in another process."""
        return {"rollout": self.rollout.state_dict(), "seconds": self.watch.seconds}


W = TypeVar("W", bound=Work)


class RolloutStage(TrainStage, Generic[W]):
    """`max_steps` rollouts, each of which is learned from in one update or several."""

    learner: RolloutLearner[Any]

    def __init__(self, context: Context, config: GRPOConfig | DistillConfig) -> None:
        super().__init__(context)
        self.max_steps, self.save_steps = config.max_steps, config.save_steps
        self.eval_steps = config.eval_steps
        self.generations = config.num_generations
        self.template = context.config.task.prompt_template
        self.sampling = Sampling.training(context.config.rollout)
        self.work: W | None = None

    @abstractmethod
    def roll_out(self, step: int) -> W:
        """The completions that a step learns from."""

    @abstractmethod
    def start(self, work: W) -> None:
        """Gives them to the learner."""

    @abstractmethod
    def restored(self, state: Mapping[str, Any], rollout: Rollout, watch: Stopwatch) -> W:
        """What was at work in another process, by its `state_dict`."""

    def finish(self, work: W) -> dict[str, float]:
        """The step is complete; what it logs beside the learner's figures."""
        rollout, watch = work.rollout, work.watch
        return {
            "completions/mean_length": fmean(rollout.lengths),
            "completions/clipped_ratio": 1 - fmean(rollout.finished),
            "tokens_per_second": sum(rollout.lengths) / watch.total(),
            "peak_memory_gib": peak_memory_gib(),
            **watch.seconds,
        }

    def sample(self, problems: Sequence[Problem], *purpose: str | int) -> Rollout:
        """A group of completions for each of these."""
        prompts = encode_prompts(self.context.tokenizer, problems, self.template)
        asked = requests(prompts, self.generations, self.context.seed, *purpose)
        return self.context.engine.generate(asked, self.sampling)

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.learner.updates - self.learner.pending if self.work else 0

    def prepare(self) -> None:
        if self.work is None:
            work = self.roll_out(self.step + 1)
            self.start(work)
            self.work = work

    def update(self) -> dict[str, float] | None:
        assert self.work is not None  # prepare
        with self.work.watch("update"):
            self.learner.update()
        if self.learner.pending:
            return None
        work, self.work = self.work, None
        self.step += 1
        return self.learner.finish() | self.finish(work)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "work": None if self.work is None else self.work.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.work = state["step"], None
        if (known := state["work"]) is not None:
            rollout = Rollout.from_state(known["rollout"], self.context.model.device)
            self.work = self.restored(known, rollout, Stopwatch(known["seconds"]))
            self.start(self.work)
        self.learner.load_state_dict(state["learner"])
