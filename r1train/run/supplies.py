"""What stages work with: problems, models and verifier processes, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.sections import ModelConfig
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import render_prompt
from r1train.engine.builtin import Engine
from r1train.model.limits import check_problems
from r1train.model.load import load_model
from r1train.rewards.manager import RewardManager
from r1train.run.artifacts import Finished, Plan
from r1train.stages.base import Context


class Supplies:
    """For the stages of one run; `closing` ends the processes.

    `done` has the stages that are finished, whose models others start from.
    """

    def __init__(self, seed: int, done: Mapping[str, Finished], closing: ExitStack) -> None:
        self.seed, self.done, self.closing = seed, done, closing
        self.loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
        self._problems: dict[str, tuple[ProblemSet, ProblemSet]] = {}
        self._rewards: dict[str, RewardManager] = {}

    def problems(self, one: Plan) -> tuple[ProblemSet, ProblemSet]:
        """Training and held-out problems, the same for stages of one task."""
        key = repr(one.config.task)
        if key not in self._problems:
            self._problems[key] = load_problems(one.config.task, self.seed)
        return self._problems[key]

    def load(self, one: Plan) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that a stage starts from, and its tokenizer; every problem fits it."""
        config, (train, heldout) = one.config, self.problems(one)
        if isinstance(one.init, Plan):
            path = str(self.done[one.init.name].artifact.path)
            config = replace(config, model=ModelConfig(path=path))
        elif one.init is not None:
            preset = one.init.removeprefix("preset:")
            chosen = {"path": one.init} if preset == one.init else {"preset": preset}
            config = replace(config, model=ModelConfig(**chosen))
        template = config.task.prompt_template
        model, tokenizer = load_model(config, (render_prompt(p.prompt, template) for p in train))
        length = config.rollout.max_completion_length
        check_problems(model, tokenizer, train, template, length)
        length = config.eval.max_completion_length or length
        check_problems(model, tokenizer, heldout[: config.eval.limit], template, length)
        return model, tokenizer

    def rewards(self, one: Plan) -> RewardManager:
        """The rewards, their processes too, the same for stages of one task and one choice."""
        key = repr((one.config.task, one.config.rewards))
        if key not in self._rewards:
            manager = RewardManager(one.config.rewards, self.problems(one)[0])
            self._rewards[key] = self.closing.enter_context(manager)
        return self._rewards[key]

    def context(self, one: Plan) -> Context:
        """What the stage works with."""
        loaded = self.loaded.pop(one.name, None)
        model, tokenizer = loaded if loaded is not None else self.load(one)
        train, heldout = self.problems(one)
        return Context(
            config=one.config,
            seed=one.seed,
            model=model,
            tokenizer=tokenizer,
            engine=Engine(model, tokenizer, one.config.rollout.batch_size),
            rewards=self.rewards(one),
            train=train,
            heldout=heldout,
        )
