"""A reward model, trained on judgements: for answers that no rule can verify."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import ceil
from typing import Any

import torch
from transformers import PreTrainedModel

from r1train.config.sections import Config
from r1train.data.epochs import draw
from r1train.data.preferences import REASONS, Preferences, check_preferences
from r1train.data.problems import ProblemSet
from r1train.learn.bradley_terry import RewardLearner, judgement_loss, margins
from r1train.model.limits import check_sequences, positions
from r1train.model.scoring import with_score
from r1train.report.evaluation import interval
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage

CONFIDENCE = 0.95


class RewardModel(TrainStage):
    """Bradley-Terry on pairs, or cross-entropy on labels, for `reward_model.num_train_epochs`.

    It starts from the backbone of a language model, and leaves a HuggingFace folder that
    `AutoModelForSequenceClassification` loads, with one logit. Judgements of other prompts, which
    it has not seen, are what table.json says its accuracy of.
    """

    leaves = "reward_model"
    uses = ("task", "reward_model")
    shown = ("loss", "accuracy")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.config = config = context.config.reward_model
        self.preferences = Preferences(
            *(config, context.config.task, context.tokenizer),
            heldout=context.reserved,
            positions=positions(context.model),
            seed=context.seed,
        )
        self.judgements = self.preferences.train
        self.examples = max(1, round(config.num_train_epochs * len(self.judgements)))
        self.max_steps, self.save_steps = ceil(self.examples / config.batch_size), config.save_steps
        seed = derive_seed(context.seed, "score")
        self.classifier = with_score(context.model, context.tokenizer, seed)
        self.learner = RewardLearner(context.policy, self.classifier, config, self.max_steps)

    @classmethod
    def draws(cls, config: Config) -> bool:
        """It learns from judgements."""
        return False

    @classmethod
    def check_files(cls, config: Config) -> None:
        check_preferences(config.reward_model, config.task)

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """There is something to learn from."""
        own = config.reward_model
        own.require(bool(own.datasets), "datasets", "give [[reward_model.datasets]] to learn from")

    @property
    def model(self) -> PreTrainedModel:
        return self.classifier

    def update(self) -> dict[str, float]:
        size = self.config.batch_size
        batch = draw(self.judgements, size, self.step + 1, self.context.seed)
        batch = batch[: self.examples - self.step * size]
        ids = chain(*((one.prompt, *one.responses) for one in batch))
        check_sequences(self.context.model, self.context.tokenizer, ids)
        metrics = self.learner.step(batch)
        self.step += 1
        return metrics

    def table(self) -> dict[str, Any]:
        """Loss, accuracy with its interval and mean margin of the judgements that were kept apart;
        a pair with equal scores is half right."""
        preferences = self.preferences
        figures: dict[str, Any] = {
            "judgements": len(self.judgements),
            "heldout": len(preferences.heldout),
            **{f"dropped/{reason}": preferences.dropped[reason] for reason in REASONS},
        }
        kept = list(preferences.heldout)
        if not kept:
            return figures
        scores, good = self.learner.scores(kept), torch.tensor([one.good for one in kept])
        margin = margins(scores, good)
        right = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margin.tolist()]
        low, high = interval(right, CONFIDENCE)
        return figures | {
            "accuracy": sum(right) / len(right),
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": judgement_loss(scores, good).mean().item(),
            "margin": margin.mean().item(),
            "per_problem": {"accuracy": right},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.learner.load_state_dict(state["learner"])
