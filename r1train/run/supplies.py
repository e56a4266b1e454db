"""What stages work with: problems, models and verifier processes, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.sections import Config
from r1train.config.stages import MARK
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import render_prompt
from r1train.engine.builtin import BuiltinEngine
from r1train.model.limits import fitting_problems
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.rewards.manager import RewardManager
from r1train.run.artifacts import Finished, Plan
from r1train.run.references import resolved
from r1train.stages import kind_of
from r1train.stages.base import Context


class Supplies:
    """For the stages of one run; `closing` ends the processes.

    `done` has the stages that are finished, whose models others start from.
    """

    def __init__(self, seed: int, done: Mapping[str, Finished], closing: ExitStack) -> None:
        self.seed, self.done, self.closing = seed, done, closing
        self.loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
        self._problems: dict[str, tuple[ProblemSet, ProblemSet]] = {}
        self._fitting: dict[str, tuple[ProblemSet, ProblemSet]] = {}
        self._rewards: dict[str, RewardManager] = {}

    def known(self, one: Plan) -> bool:
        """Whether the stages that its options name are finished."""
        return all(read.name in self.done for read in one.read)

    def config(self, one: Plan) -> Config:
        """The options of a stage, with paths where those that it uses name what another has
        left. What is not finished is still named."""
        own = kind_of(one.stage.kind).used(one.config)
        done = {name: str(stage.artifact.path) for name, stage in self.done.items()}
        found = resolved(own, lambda name: done.get(name, MARK + name))
        changed = {name: value for name, value in found.items() if value is not own[name]}
        return replace(one.config, **changed) if changed else one.config

    def problems(self, one: Plan) -> tuple[ProblemSet, ProblemSet]:
        """Training and held-out problems, the same for stages of one task. Raises ConfigError where
        the stage draws training problems and there are none."""
        config = self.config(one)
        key = repr(config.task)
        if key not in self._problems:
            self._problems[key] = load_problems(config.task, self.seed)
        train, heldout = self._problems[key]
        if kind_of(one.stage.kind).draws(config):
            train.require_all()
        return train, heldout

    def load(self, one: Plan) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that a stage starts from, and its tokenizer; its problems are those
        that fit it."""
        config, (train, heldout) = self.config(one), self.problems(one)
        if one.init is not None:
            origin = one.init
            if isinstance(origin, Plan):
                origin = str(self.done[origin.name].artifact.path)
            preset = origin.removeprefix("preset:") if origin.startswith("preset:") else None
            path = None if preset else origin
            model = replace(config.model, path=path, preset=preset, gguf_file=None)
            config = replace(config, model=model)
        template = config.task.prompt_template
        texts = (render_prompt(p.prompt, template) for _, p in train.as_they_lie())
        loaded, tokenizer = load_model(config, texts)
        length = config.rollout.max_completion_length
        train = fitting_problems(loaded, tokenizer, train, template, length)
        length, heldout = config.eval.max_completion_length or length, heldout[: config.eval.limit]
        heldout = fitting_problems(loaded, tokenizer, heldout, template, length)
        self._fitting[one.name] = train, heldout
        return loaded, tokenizer

    def rewards(self, one: Plan) -> RewardManager:
        """The rewards, their processes too, the same for stages of one task and one choice."""
        config = self.config(one)
        own = kind_of(one.stage.kind).used(config)
        # Rewards that a stage does not use may name one that comes later.
        rewards = own.get("rewards", config.rewards.of_answers()).on(config.device)
        key = repr((config.task, rewards))
        if key not in self._rewards:
            train, heldout = self.problems(one)
            manager = RewardManager(rewards, train or heldout)
            self._rewards[key] = self.closing.enter_context(manager)
        return self._rewards[key]

    def context(self, one: Plan) -> Context:
        """What the stage works with."""
        loaded = self.loaded.pop(one.name, None)
        model, tokenizer = loaded if loaded is not None else self.load(one)
        train, heldout = self._fitting.pop(one.name)
        config = self.config(one)
        return Context(
            config=config,
            seed=one.seed,
            policy=Policy(model, gradient_checkpointing=config.model.gradient_checkpointing),
            tokenizer=tokenizer,
            engine=BuiltinEngine.from_config(model, tokenizer, config.rollout),
            rewards=self.rewards(one),
            train=train,
            heldout=heldout,
            reserved=self.problems(one)[1],
        )
