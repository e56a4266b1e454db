"""Reinforcement learning: rollout, rewards, updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from r1train.data.epochs import draw, others
from r1train.data.problems import Problem
from r1train.data.samples import Sample, samples_of
from r1train.engine.base import Rollout
from r1train.learn.grpo import Learner
from r1train.learn.refill import Scored, refill
from r1train.metrics import Stopwatch
from r1train.report.console import show_completions
from r1train.rewards.base import RewardBatch
from r1train.seeds import derive_seed
from r1train.stages import rollouts
from r1train.stages.base import Context

SHOWN = 4  # completions of a prompt in the printed table


@dataclass(frozen=True)
class Work(rollouts.Work):
    """A rollout and its rewards, and what is learned from: the same unless groups were replaced."""

    problems: list[Problem]
    rewards: RewardBatch
    learned: Scored
    extra_rollouts: int

    def state_dict(self) -> dict[str, Any]:
        replaced = self.learned.rollout is not self.rollout
        return {
            **super().state_dict(),
            "rewards": self.rewards.state_dict(),
            "learned": {
                "rollout": self.learned.rollout.state_dict(),
                "rewards": list(self.learned.rewards),
            }
            if replaced
            else None,
            "extra_rollouts": self.extra_rollouts,
        }


class RL(rollouts.RolloutStage[Work]):
    """GRPO: `grpo.max_steps` rollouts, each of which is learned from in one update or several."""

    uses = ("task", "rewards", "rollout", "grpo", "eval")
    learner: Learner

    def __init__(self, context: Context) -> None:
        config = context.config
        super().__init__(context, config.grpo)
        names = (f"rewards/{name}" for name in context.rewards.weights)
        self.shown = ("reward", *names)[:3]
        self.config = config.grpo
        self.learner = Learner(
            context.policy,
            config.grpo,
            temperature=config.rollout.temperature,
            max_completion_length=config.rollout.max_completion_length,
            sampling_tolerance=context.engine.sampling_tolerance,
            seed=derive_seed(context.seed, "minibatches"),
        )

    def _problems(self, drawn: Sequence[Problem]) -> list[Problem]:
        """[B]: that of each completion."""
        return [problem for problem in drawn for _ in range(self.generations)]

    def _drawn(self, step: int) -> list[Problem]:
        return draw(self.context.train, self.config.prompts_per_step, step, self.context.seed)

    def roll_out(self, step: int) -> Work:
        """Completions of a step's problems, and others in the place of groups without a gradient,
        as far as `max_extra_rollouts` goes."""
        draws = self.context.train, self.config.prompts_per_step, step, self.context.seed
        drawn, extra, watch = self._drawn(step), others(*draws), Stopwatch()
        with watch("rollout"):
            self.context.sync(step)
        rollout, rewards = self._scored(drawn, watch, "rollout", step)

        def more(count: int, attempt: int) -> Scored:
            sampled, scores = self._scored([*islice(extra, count)], watch, "extra", step, attempt)
            return Scored(sampled, scores.total)

        first = Scored(rollout, rewards.total)
        learned, count = refill(first, more, self.config.max_extra_rollouts)
        return Work(rollout, watch, self._problems(drawn), rewards, learned, count)

    def start(self, work: Work) -> None:
        self.learner.start(*work.learned)

    def finish(self, work: Work) -> dict[str, float]:
        figures = work.rewards.metrics() | super().finish(work)
        if self.config.max_extra_rollouts:
            figures["extra_rollouts"] = work.extra_rollouts
        self._show(work)
        return figures

    def _scored(
        self, drawn: Sequence[Problem], watch: Stopwatch, *purpose: str | int
    ) -> tuple[Rollout, RewardBatch]:
        """A group of completions for each of these, and their rewards."""
        with watch("rollout"):
            rollout = self.sample(drawn, *purpose)
        with watch("reward"):
            rewards = self.context.rewards.score(self._samples(self._problems(drawn), rollout))
        return rollout, rewards

    def _samples(self, problems: Sequence[Problem], rollout: Rollout) -> list[Sample]:
        ids, ended = rollout.completion_ids, rollout.finished
        return samples_of(problems, ids, ended, self.context.tokenizer, self.template)

    def _show(self, work: Work) -> None:
        """Some completions of the first two prompts, on the terminal."""
        every = self.config.log_completions_steps
        if not every or self.step % every:
            return
        samples = self._samples(work.problems, work.rollout)
        group = self.generations
        rows = [start + i for start in (0, group) for i in range(min(group, SHOWN))]
        rows = [row for row in rows if row < len(samples)]
        scores = {
            name: [values[row] for row in rows] for name, values in work.rewards.by_name.items()
        }
        questions = [samples[row].problem.question for row in rows]
        show_completions(self.step, questions, [samples[row].completion for row in rows], scores)

    def restored(self, state: Mapping[str, Any], rollout: Rollout, watch: Stopwatch) -> Work:
        rewards = RewardBatch.from_state(state["rewards"])
        learned = Scored(rollout, rewards.total)
        if (other := state["learned"]) is not None:
            device = self.context.model.device
            learned = Scored(Rollout.from_state(other["rollout"], device), other["rewards"])
        problems = self._problems(self._drawn(self.step + 1))
        return Work(rollout, watch, problems, rewards, learned, state["extra_rollouts"])
