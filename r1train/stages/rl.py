"""Reinforcement learning: rollout, rewards, updates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem
from r1train.data.samples import Sample, samples_of
from r1train.engine.base import Rollout
from r1train.learn.grpo import Learner
from r1train.metrics import Stopwatch, peak_memory_gib
from r1train.report.console import show_completions
from r1train.rewards.base import RewardBatch
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage

SHOWN = 4  # completions of a prompt in the printed table


@dataclass(frozen=True)
class Work:
    """A rollout and its rewards, while updates are made of them."""

    samples: list[Sample]
    rollout: Rollout
    rewards: RewardBatch
    watch: Stopwatch


class RL(TrainStage):
    """GRPO: `grpo.max_steps` rollouts, each of which is learned from in one update or several."""

    uses = ("task", "rewards", "rollout", "grpo", "eval")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        names = (f"rewards/{name}" for name in context.rewards.weights)
        self.shown = ("reward", *names)[:3]
        self.config = config.grpo
        self.max_steps, self.save_steps = self.config.max_steps, self.config.save_steps
        self.eval_steps = self.config.eval_steps
        self.learner = Learner(
            context.model,
            config.grpo,
            temperature=config.rollout.temperature,
            max_completion_length=config.rollout.max_completion_length,
            seed=derive_seed(context.seed, "minibatches"),
        )
        self.work: Work | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.learner.updates_done

    def prepare(self) -> None:
        if self.work is None:
            work = self._roll_out(self.step + 1)
            self.learner.start(work.rollout, work.rewards.total)
            self.work = work

    def update(self) -> dict[str, float] | None:
        assert self.work is not None  # prepare
        with self.work.watch("update"):
            self.learner.update()
        if self.learner.pending:
            return None
        work, self.work = self.work, None
        self.step += 1
        metrics = self.learner.finish() | describe(work)
        self._show(work)
        return metrics

    def _problems(self, step: int) -> list[Problem]:
        drawn = draw(self.context.train, self.config.prompts_per_step, step, self.context.seed)
        return [problem for problem in drawn for _ in range(self.config.num_generations)]

    def _roll_out(self, step: int) -> Work:
        context, sampling, watch = self.context, self.context.config.rollout, Stopwatch()
        problems = self._problems(step)
        template = context.config.task.prompt_template
        with watch("rollout"):
            rollout = context.engine.generate(
                encode_prompts(context.tokenizer, problems, template),
                max_new_tokens=sampling.max_completion_length,
                temperature=sampling.temperature,
                seed=derive_seed(context.seed, "rollout", step),
            )
        with watch("reward"):
            samples = self._samples(problems, rollout)
            rewards = context.rewards.score(samples)
        return Work(samples, rollout, rewards, watch)

    def _samples(self, problems: Sequence[Problem], rollout: Rollout) -> list[Sample]:
        template, tokenizer = self.context.config.task.prompt_template, self.context.tokenizer
        return samples_of(problems, rollout.completion_ids, rollout.finished, tokenizer, template)

    def _show(self, work: Work) -> None:
        """Some completions of the first two prompts, on the terminal."""
        every = self.config.log_completions_steps
        if not every or self.step % every:
            return
        samples = work.samples
        group = self.config.num_generations
        rows = [start + i for start in (0, group) for i in range(min(group, SHOWN))]
        rows = [row for row in rows if row < len(samples)]
        scores = {
            name: [values[row] for row in rows] for name, values in work.rewards.by_name.items()
        }
        questions = [samples[row].problem.question for row in rows]
        show_completions(self.step, questions, [samples[row].completion for row in rows], scores)

    def state_dict(self) -> dict[str, Any]:
        work = self.work
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "work": None
            if work is None
            else {
                "rollout": work.rollout.state_dict(),
                "rewards": work.rewards.state_dict(),
                "seconds": work.watch.seconds,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, work = state["step"], state["work"]
        self.work = None
        if work is not None:
            rollout = Rollout.from_state(work["rollout"], self.context.model.device)
            rewards = RewardBatch.from_state(work["rewards"])
            watch = Stopwatch(work["seconds"])
            samples = self._samples(self._problems(self.step + 1), rollout)
            self.work = Work(samples, rollout, rewards, watch)
            self.learner.start(rollout, rewards.total)
        self.learner.load_state_dict(state["learner"])


def draw(problems: Sequence[Problem], count: int, step: int, seed: int) -> list[Problem]:
    """The problems of a step, counted from 1: epoch after epoch, each in an order of its own."""
    first = (step - 1) * count
    return [
        problems[_order(len(problems), epoch, seed)[place]]
        for epoch, place in (divmod(i, len(problems)) for i in range(first, first + count))
    ]


@lru_cache(maxsize=2)
def _order(size: int, epoch: int, seed: int) -> Sequence[int]:
    return random.Random(derive_seed(seed, "order", epoch)).sample(range(size), size)


def describe(work: Work) -> dict[str, float]:
    """What a step logs of its completions and their rewards, and of its time."""
    rollout, rewards, watch = work.rollout, work.rewards, work.watch
    return {
        **rewards.metrics(),
        "completions/mean_length": fmean(rollout.lengths),
        "completions/clipped_ratio": 1 - fmean(rollout.finished),
        "tokens_per_second": sum(rollout.lengths) / watch.total(),
        "peak_memory_gib": peak_memory_gib(),
        **watch.seconds,
    }
