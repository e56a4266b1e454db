"""On-policy distillation: a student samples, and learns from a teacher on its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError, shown
from r1train.config.sections import Config
from r1train.data.epochs import draw
from r1train.data.problems import ProblemSet
from r1train.data.prompts import render_prompt
from r1train.engine.base import Rollout
from r1train.learn.distill import OnPolicyDistiller
from r1train.metrics import Stopwatch
from r1train.model.limits import fitting_problems
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.seeds import derive_seed
from r1train.stages.base import Context
from r1train.stages.rollouts import RolloutStage, Work


class OnPolicyDistill(RolloutStage[Work]):
    """`distill.max_steps` rollouts of the student, on each of which its divergence from the teacher
    is lowered in one update or several. Rewards have no part in it."""

    uses = ("task", "rewards", "rollout", "distill", "eval")
    shown = ("kl",)
    learner: OnPolicyDistiller

    def __init__(self, context: Context) -> None:
        config = context.config
        super().__init__(context, config.distill)
        self.prompts = config.distill.prompts_per_step
        length = config.rollout.max_completion_length
        teacher = load_teacher(context)
        # Of both models: the teacher may have fewer positions.
        self.train = fitting_problems(
            teacher, context.tokenizer, context.train, self.template, length
        )
        self.learner = OnPolicyDistiller(
            context.policy,
            Policy(teacher),
            config.distill,
            temperature=config.rollout.temperature,
            seed=derive_seed(context.seed, "minibatches"),
        )

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """There is a teacher."""
        teacher = config.distill.teacher
        if teacher is None:
            raise ConfigError(
                "distill.teacher is not set: on_policy_distill needs a model to learn from: a "
                'HuggingFace folder, "stage:NAME" or "preset:NAME"'
            )
        if not teacher.startswith("preset:") and not (Path(teacher) / "config.json").is_file():
            raise ConfigError(
                f"distill.teacher = {shown(teacher)}: expected a HuggingFace folder, which has a "
                'config.json, "stage:NAME" or "preset:NAME"'
            )

    def roll_out(self, step: int) -> Work:
        watch = Stopwatch()
        problems = draw(self.train, self.prompts, step, self.context.seed)
        with watch("rollout"):
            self.context.sync(step)
            return Work(self.sample(problems, "rollout", step), watch)

    def start(self, work: Work) -> None:
        self.learner.start(work.rollout)

    def restored(self, state: Mapping[str, Any], rollout: Rollout, watch: Stopwatch) -> Work:
        return Work(rollout, watch)


def load_teacher(context: Context) -> PreTrainedModel:
    """The model of `distill.teacher`, without gradients. Raises ConfigError where its vocabulary is
    not the student's."""
    config, origin = context.config, str(context.config.distill.teacher)
    preset = origin.removeprefix("preset:") if origin.startswith("preset:") else None
    source = ModelConfig(preset=preset, path=None if preset else origin)
    template = config.task.prompt_template
    texts = (render_prompt(p.prompt, template) for _, p in context.train.as_they_lie())
    teacher, tokenizer = load_model(replace(config, model=source), texts)
    check_vocabularies(origin, tokenizer, context.tokenizer)
    return teacher.requires_grad_(False)


def check_vocabularies(
    teacher: str, of_teacher: PreTrainedTokenizerBase, of_student: PreTrainedTokenizerBase
) -> None:
    """A token has the same number in both: their distributions are compared number by number."""
    theirs, ours = of_teacher.get_vocab(), of_student.get_vocab()
    if theirs == ours:
        return
    differing = sorted(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
    token = differing[0]
    raise ConfigError(
        f"distill.teacher = {shown(teacher)}: its vocabulary is not the student's: "
        f"{len(differing)} tokens differ, such as {token!r}, number {theirs.get(token)} there and "
        f"{ours.get(token)} here; distil between models of one tokenizer, or train on texts of the "
        'teacher instead (kind = "sft")'
    )
