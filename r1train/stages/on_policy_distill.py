"""On-policy distillation: a student samples, and learns from a teacher on its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError, shown
from r1train.config.sections import Config
from r1train.data.encode import encode_prompts
from r1train.data.epochs import draw
from r1train.data.problems import ProblemSet
from r1train.data.prompts import render_prompt
from r1train.engine.base import Request, Rollout, Sampling
from r1train.learn.distill import OnPolicyDistiller
from r1train.metrics import Stopwatch, peak_memory_gib
from r1train.model.limits import fitting_problems
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage


@dataclass(frozen=True)
class Work:
    """A rollout that is being learned from, and what its step took."""

    rollout: Rollout
    watch: Stopwatch


class OnPolicyDistill(TrainStage):
    """`distill.max_steps` rollouts of the student, on each of which its divergence from the teacher
    is lowered in one update or several. Rewards have no part in it."""

    uses = ("task", "rewards", "rollout", "distill", "eval")
    shown = ("kl",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.config = config.distill
        self.max_steps, self.save_steps = self.config.max_steps, self.config.save_steps
        self.eval_steps = self.config.eval_steps
        self.template = config.task.prompt_template
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
        self.sampling = Sampling(
            max_new_tokens=length,
            temperature=config.rollout.temperature,
            stop=config.rollout.stop,
        )
        self.work: Work | None = None

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

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.learner.updates - self.learner.pending if self.work else 0

    def prepare(self) -> None:
        if self.work is None:
            work = self._roll_out(self.step + 1)
            self.learner.start(work.rollout)
            self.work = work

    def update(self) -> dict[str, float] | None:
        assert self.work is not None  # prepare
        with self.work.watch("update"):
            self.learner.update()
        if self.learner.pending:
            return None
        work, self.work = self.work, None
        self.step += 1
        return self.learner.finish() | describe(work)

    def _roll_out(self, step: int) -> Work:
        context, config, watch = self.context, self.config, Stopwatch()
        problems = draw(self.train, config.prompts_per_step, step, context.seed)
        with watch("rollout"):
            context.sync(step)
            prompts = encode_prompts(context.tokenizer, problems, self.template)
            requests = [
                Request(
                    prompt, config.num_generations, derive_seed(context.seed, "rollout", step, i)
                )
                for i, prompt in enumerate(prompts)
            ]
            rollout = context.engine.generate(requests, self.sampling)
        return Work(rollout, watch)

    def state_dict(self) -> dict[str, Any]:
        work = self.work
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "work": None
            if work is None
            else {"rollout": work.rollout.state_dict(), "seconds": work.watch.seconds},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.work = state["step"], None
        if (work := state["work"]) is not None:
            rollout = Rollout.from_state(work["rollout"], self.context.model.device)
            self.work = Work(rollout, Stopwatch(work["seconds"]))
            self.learner.start(rollout)
        self.learner.load_state_dict(state["learner"])


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


def describe(work: Work) -> dict[str, float]:
    """What a step logs of its completions, and of its time."""
    rollout, watch = work.rollout, work.watch
    return {
        "completions/mean_length": fmean(rollout.lengths),
        "completions/clipped_ratio": 1 - fmean(rollout.finished),
        "tokens_per_second": sum(rollout.lengths) / watch.total(),
        "peak_memory_gib": peak_memory_gib(),
        **watch.seconds,
    }
