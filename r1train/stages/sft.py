"""Supervised fine-tuning: a cold start, or what stands in for pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.demonstrations import (
    Demonstration,
    Demonstrations,
    RecordedDemonstrations,
    check_demonstrations,
)
from r1train.data.problems import ProblemSet
from r1train.data.worked_solutions import WorkedSolutions, check_solutions
from r1train.learn.sft import SupervisedLearner
from r1train.model.limits import check_sequences, positions
from r1train.stages.base import Context, TrainStage


class SFT(TrainStage):
    """Next-token prediction on demonstrations, for `sft.max_steps` batches or whole epochs.

    Distillation is the same: a smaller model learns what a larger one has said.
    """

    uses = ("task", "rewards", "rollout", "sft", "eval")
    shown = ("loss",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.demonstrations = demonstrations(context)
        self.max_steps, self.save_steps = self.demonstrations.steps, config.sft.save_steps
        self.learner = SupervisedLearner(context.policy, config.sft, self.max_steps)

    @classmethod
    def draws(cls, config: Config) -> bool:
        """For worked solutions, and to be shown where it is evaluated."""
        return not config.sft.datasets or config.eval.num_fewshot > 0

    @classmethod
    def check_files(cls, config: Config) -> None:
        check_demonstrations(config.sft.datasets, config.task, "sft.datasets")

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """There is something to learn from."""
        if not config.sft.datasets:
            reason = "worked solutions are new ones at every step: give max_steps, or datasets"
            config.sft.require(config.sft.num_train_epochs is None, "num_train_epochs", reason)
            check_solutions(train.sources, config.sft)

    def update(self) -> dict[str, float]:
        batch = self.demonstrations.batch(self.step)
        check_lengths(self.context.model, self.context.tokenizer, batch)
        metrics = self.learner.step(
            [one.prompt for one in batch],
            [one.completion for one in batch],
            [one.learned for one in batch],
        )
        self.step += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.learner.load_state_dict(state["learner"])


def demonstrations(context: Context) -> Demonstrations:
    """Those of files, or worked solutions of the problems."""
    config, tokenizer, seed = context.config, context.tokenizer, context.seed
    if config.sft.datasets:
        limit = positions(context.model)
        return RecordedDemonstrations(
            *(config.sft, config.task, tokenizer),
            heldout=context.reserved,
            positions=limit,
            seed=seed,
        )
    template = config.task.prompt_template
    return WorkedSolutions(context.train, config.sft, tokenizer, template=template, seed=seed)


def check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Demonstration]
) -> None:
    """The model knows the tokens of every demonstration, and has a position for each."""
    check_sequences(model, tokenizer, chain(*((d.prompt, d.completion) for d in batch)))
    longest, limit = max(batch, key=_length), positions(model)
    if limit is not None and _length(longest) > limit:
        raise ConfigError(
            f"{longest.where}: the prompt and what is to be said have {_length(longest)} tokens, "
            f"and the model {limit} positions: make it shorter, or leave it out"
        )


def _length(demonstration: Demonstration) -> int:
    return len(demonstration.prompt) + len(demonstration.completion)
