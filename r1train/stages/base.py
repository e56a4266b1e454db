"""What a stage is: what it is given, what it leaves, and what a training stage can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.sections import Config
from r1train.data.encode import encode_prompts
from r1train.data.problems import ProblemSet
from r1train.engine.base import Engine
from r1train.engine.sync import WeightSync
from r1train.model.policy import Policy
from r1train.report.evaluation import EvalResult
from r1train.rewards.manager import RewardManager

ArtifactKind = Literal["checkpoint", "samples", "table", "reward_model", "process_reward_model"]
"""A causal language model and a model that scores texts or their steps are HuggingFace folders,
samples a JSONL file, and a table a JSON file."""
PROBED = 2  # prompts by which the engine's weights are checked


@dataclass(frozen=True)
class Artifact:
    """What a finished stage leaves for others."""

    kind: ArtifactKind
    path: Path
    """A folder or a file, by its kind."""
    inputs_hash: str
    """Of everything it was made from."""


@dataclass(frozen=True)
class Context:
    """What a stage works with: its own options and seed, its model, problems and rewards."""

    config: Config
    seed: int
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    rewards: RewardManager
    train: ProblemSet
    heldout: ProblemSet
    """What evaluations ask."""
    reserved: ProblemSet
    """All that is held out: nothing is learnt of it."""

    @cached_property
    def sync(self) -> WeightSync:
        """Gives the engine the weights as they are, and sees that they have arrived."""
        template = self.config.task.prompt_template
        problems = self.train or self.heldout
        probe = encode_prompts(self.tokenizer, problems[:PROBED], template)
        return WeightSync(self.engine, self.policy, probe)

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model


class Stage(ABC):
    """One stage of a recipe; a kind is a subclass, registered in `r1train.stages.KINDS`."""

    leaves: ClassVar[ArtifactKind]
    uses: ClassVar[tuple[str, ...]]
    """The sections of the options that decide what it leaves."""
    judges_alone: ClassVar[bool] = False
    """Whether it needs of the rewards only what says that an answer is right."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.results: list[EvalResult] = []

    @classmethod
    def used(cls, config: Config) -> dict[str, Any]:
        """The sections that it uses by name, as far as they decide what it leaves."""
        found = {name: getattr(config, name) for name in cls.uses}
        return found | {"rewards": config.rewards.of_answers()} if cls.judges_alone else found

    @classmethod
    def draws(cls, config: Config) -> bool:
        """Whether it needs training problems, to learn from or to show; else held-out ones do."""
        return True

    @classmethod  # noqa: B027 (optional)
    def check_files(cls, config: Config) -> None:
        """Raises ConfigError where a file that it reads beside its problems is not there, or has a
        row that cannot be used. What earlier stages leave need not be there yet."""

    @classmethod  # noqa: B027 (optional)
    def check(cls, config: Config, train: ProblemSet) -> None:
        """Raises ConfigError for what can be known to be wrong before a model is loaded, once what
        it needs of earlier stages is there."""

    def run(self, folder: Path) -> Path:
        """Leaves an artifact in `folder`, and evaluations, if any, in `results`."""
        raise NotImplementedError  # of a TrainStage: it is trained


class TrainStage(Stage):
    """A stage that changes the model, an update at a time, and can be left and taken up anywhere.

    A step is what is logged as one line; it has one update or several. Everything that a later
    update depends on is in `state_dict`, the weights that are trained too.
    """

    leaves: ClassVar[ArtifactKind] = "checkpoint"
    max_steps: int
    eval_steps: int = 0
    save_steps: int | None = None
    shown: tuple[str, ...]
    """The figures beside the progress bar."""
    step = 0
    """Steps that are complete."""

    @property
    def model(self) -> PreTrainedModel:
        """What it trains: it is saved as the stage's checkpoint."""
        return self.context.model

    def prepare(self) -> None:
        """What comes before the next update and may take long, such as a rollout.

        It may be broken off and started again: what has been computed is kept only at its end.
        """

    @abstractmethod
    def update(self) -> dict[str, float] | None:
        """One optimizer step; the figures of the step where it completes one."""

    def table(self) -> dict[str, Any]:
        """Figures of what has been trained, beside held-out problems, for table.json: see
        `r1train.stages.table`."""
        return {}

    @property
    def place(self) -> tuple[int, int]:
        """Complete steps, and updates made since."""
        return self.step, 0

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, named by parameter where there is one for each."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what another `state_dict` has."""
