"""Reinforcement learning: rollout, rewards, updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from r1train.data.encode import encode_prompts
from r1train.data.epochs import draw, others
from r1train.data.problems import Problem
from r1train.data.samples import Sample, samples_of
from r1train.engine.base import Request, Rollout, Sampling
from r1train.learn.grpo import Learner
from r1train.learn.refill import Scored, refill
from r1train.metrics import Stopwatch, peak_memory_gib
from r1train.report.console import show_completions
from r1train.rewards.base import RewardBatch
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage

SHOWN = 4  # completions of a prompt in the printed table


@dataclass(frozen=True)
class Work:
    """A rollout and its rewards, and what is learned from: the same unless groups were replaced."""

    problems: list[Problem]
    rollout: Rollout
    rewards: RewardBatch
    watch: Stopwatch
    learned: Scored
    extra_rollouts: int = 0


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
            context.policy,
            config.grpo,
            temperature=config.rollout.temperature,
            max_completion_length=config.rollout.max_completion_length,
            sampling_tolerance=context.engine.sampling_tolerance,
            seed=derive_seed(context.seed, "minibatches"),
        )
        self.sampling = Sampling(
            max_new_tokens=config.rollout.max_completion_length,
            temperature=config.rollout.temperature,
            stop=config.rollout.stop,
        )
        self.template = config.task.prompt_template
        self.work: Work | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.learner.updates - self.learner.pending if self.work else 0

    def prepare(self) -> None:
        if self.work is None:
            work = self._roll_out(self.step + 1)
            self.learner.start(*work.learned)
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
        if self.config.max_extra_rollouts:
            metrics["extra_rollouts"] = work.extra_rollouts
        self._show(work)
        return metrics

    def _problems(self, drawn: Sequence[Problem]) -> list[Problem]:
        """[B]: that of each completion."""
        return [problem for problem in drawn for _ in range(self.config.num_generations)]

    def _drawn(self, step: int) -> list[Problem]:
        return draw(self.context.train, self.config.prompts_per_step, step, self.context.seed)

    def _roll_out(self, step: int) -> Work:
        """Completions of a step's problems, and others in the place of groups without a gradient,
        as far as `max_extra_rollouts` goes."""
        draws = self.context.train, self.config.prompts_per_step, step, self.context.seed
        drawn, extra, watch = self._drawn(step), others(*draws), Stopwatch()
        with watch("rollout"):
            self.context.sync(step)
        rollout, rewards = self._sample(drawn, watch, "rollout", step)

        def more(count: int, attempt: int) -> Scored:
            sampled, scores = self._sample([*islice(extra, count)], watch, "extra", step, attempt)
            return Scored(sampled, scores.total)

        first = Scored(rollout, rewards.total)
        learned, count = refill(first, more, self.config.max_extra_rollouts)
        return Work(self._problems(drawn), rollout, rewards, watch, learned, count)

    def _sample(
        self, drawn: Sequence[Problem], watch: Stopwatch, *purpose: str | int
    ) -> tuple[Rollout, RewardBatch]:
        """A group of completions for each of these, and their rewards."""
        context, n = self.context, self.config.num_generations
        with watch("rollout"):
            requests = [
                Request(prompt, n, derive_seed(context.seed, *purpose, i))
                for i, prompt in enumerate(encode_prompts(context.tokenizer, drawn, self.template))
            ]
            rollout = context.engine.generate(requests, self.sampling)
        with watch("reward"):
            rewards = context.rewards.score(self._samples(self._problems(drawn), rollout))
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
                "learned": None  # what was sampled, where no group was replaced
                if work.learned.rollout is work.rollout
                else {
                    "rollout": work.learned.rollout.state_dict(),
                    "rewards": list(work.learned.rewards),
                },
                "extra_rollouts": work.extra_rollouts,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.work = state["step"], None
        if (work := state["work"]) is not None:
            device = self.context.model.device
            rollout = Rollout.from_state(work["rollout"], device)
            rewards = RewardBatch.from_state(work["rewards"])
            learned = Scored(rollout, rewards.total)
            if (other := work["learned"]) is not None:
                learned = Scored(Rollout.from_state(other["rollout"], device), other["rewards"])
            self.work = Work(
                self._problems(self._drawn(self.step + 1)),
                rollout,
                rewards,
                Stopwatch(work["seconds"]),
                learned,
                work["extra_rollouts"],
            )
            self.learner.start(*self.work.learned)
        self.learner.load_state_dict(state["learner"])


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
