"""A process reward model: what each step of a solution is worth, learnt from rollouts.

The same score is what best-of-n ranks solutions by, and tree search its leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.encode import encode_prompts
from r1train.data.epochs import draw
from r1train.data.problems import Problem, ProblemSet
from r1train.data.samples import samples_of
from r1train.engine.base import Sampling, requests
from r1train.engine.stopping import stop_tokens
from r1train.learn.value import ValueLearner
from r1train.model.scoring import with_score
from r1train.search.step_values import Judge, step_values
from r1train.search.steps import Steps
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage


@dataclass(frozen=True)
class Solution:
    """A sampled solution of a problem, and the values of its steps."""

    problem: int
    tokens: list[int]
    ends: list[int]
    values: list[float]


class ProcessReward(TrainStage):
    """Samples solutions, estimates the value of each of their steps, and learns these."""

    leaves = "process_reward_model"
    uses = ("task", "rewards", "rollout", "steps", "process_reward")
    judges_alone = True
    shown = ("loss", "brier")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = self.config = context.config.process_reward
        count = min(config.num_prompts, len(context.train))
        drawn = draw(context.train, count, 1, context.seed)
        self.problems = [problem for problem in drawn if problem.verifiable]
        if not self.problems:
            raise ConfigError(
                f"process_reward: none of {count} training problems has an answer, so no step can "
                "be said to lead to it: give it a task whose problems have answers"
            )
        solutions = len(self.problems) * config.num_generations
        self.max_steps = ceil(solutions * config.num_train_epochs / config.batch_size)
        self.save_steps = config.save_steps
        template = context.config.task.prompt_template
        self.prompts = encode_prompts(context.tokenizer, self.problems, template)
        seed = derive_seed(context.seed, "score")
        self.classifier = with_score(context.model, context.tokenizer, seed, "token")
        self.learner = ValueLearner(context.policy, self.classifier, config, self.max_steps)
        self.solutions: list[Solution] | None = None

    @property
    def model(self) -> PreTrainedModel:
        return self.classifier

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """Solutions can be judged at all, and the model be trained whole."""
        reason = "a process reward model has no adapters: set it to 0"
        config.model.require(config.model.lora_rank == 0, "lora_rank", reason)
        if all(source.answer_field == "" for source in train.sources):
            raise ConfigError(
                'process_reward: no dataset has answers (answer_field = ""), so no step can be '
                "said to lead to one"
            )

    def prepare(self) -> None:
        if self.solutions is None:
            self.solutions = self._sample()

    def update(self) -> dict[str, float]:
        assert self.solutions is not None  # prepare
        seed = derive_seed(self.context.seed, "order")
        batch = draw(self.solutions, self.config.batch_size, self.step + 1, seed)
        metrics = self.learner.step(
            [self.prompts[one.problem] for one in batch],
            [one.tokens for one in batch],
            [one.ends for one in batch],
            [one.values for one in batch],
        )
        self.step += 1
        return metrics

    def table(self) -> dict[str, Any]:
        """What was learnt from."""
        assert self.solutions is not None  # prepare
        values = [value for one in self.solutions for value in one.values]
        return {
            "problems": len(self.problems),
            "solutions": len(self.solutions),
            "right": fmean(one.values[-1] for one in self.solutions),
            "steps": len(values),
            "value": fmean(values),
        }

    def _sample(self) -> list[Solution]:
        context, config = self.context, self.config
        sampling = Sampling.training(context.config.rollout)
        stop = stop_tokens(context.model, context.tokenizer)
        steps = Steps(context.config.steps, context.tokenizer, sampling, stop)
        context.sync(1)
        asked = requests(self.prompts, config.num_generations, context.seed, "solutions")
        sampled = context.engine.generate(asked, sampling)
        tokens, owners = sampled.completion_ids, sampled.prompt_index
        ends = [steps.ends(solution) for solution in tokens]
        values = step_values(
            *(self.prompts, owners, tokens, sampled.finished, ends),
            engine=context.engine,
            sampling=sampling,
            rollouts=config.num_rollouts,
            judge=judge(context, self.problems),
            seed=derive_seed(context.seed, "rollouts"),
        )
        return [Solution(*one) for one in zip(owners, tokens, ends, values, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "solutions": None if self.solutions is None else _packed(self.solutions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.learner.load_state_dict(state["learner"])
        known = state["solutions"]
        self.solutions = None if known is None else _unpacked(known)


def judge(context: Context, problems: Sequence[Problem]) -> Judge:
    """Whether solutions of `problems` are right, as the accuracy reward has it."""
    accuracy, tokenizer = context.rewards.rewards["accuracy"], context.tokenizer
    template = context.config.task.prompt_template

    def right(
        owners: Sequence[int], solutions: Sequence[list[int]], finished: Sequence[bool]
    ) -> list[float]:
        asked = [problems[owner] for owner in owners]
        scores = accuracy(samples_of(asked, solutions, finished, tokenizer, template))
        return [value or 0.0 for value in scores.values]

    return right


def _packed(solutions: Sequence[Solution]) -> dict[str, Tensor]:
    """Solutions as tensors, which a checkpoint keeps in little space."""
    return {
        "problem": torch.tensor([one.problem for one in solutions]),
        "tokens": torch.tensor([token for one in solutions for token in one.tokens]),
        "lengths": torch.tensor([len(one.tokens) for one in solutions]),
        "ends": torch.tensor([end for one in solutions for end in one.ends]),
        "values": torch.tensor([v for one in solutions for v in one.values], dtype=torch.float64),
        "steps": torch.tensor([len(one.ends) for one in solutions]),
    }


def _unpacked(state: Mapping[str, Tensor]) -> list[Solution]:
    lengths, steps = state["lengths"].tolist(), state["steps"].tolist()
    parts = (
        state["problem"].tolist(),
        [part.tolist() for part in state["tokens"].cpu().split(lengths)],
        [part.tolist() for part in state["ends"].cpu().split(steps)],
        [part.tolist() for part in state["values"].cpu().split(steps)],
    )
    return [Solution(*one) for one in zip(*parts, strict=True)]
