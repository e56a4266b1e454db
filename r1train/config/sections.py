"""All options of a run: frozen dataclasses, which `r1train.config.recipe` fills from a recipe.

GRPO options carry the names TRL gives them. "R1" in a docstring is DeepSeek-R1 (arXiv 2501.12948).
An optional field is None by default, so that leaving it out of a written TOML file loses nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from r1train.config.distill import DistillConfig
from r1train.config.evaluation import EvalConfig
from r1train.config.findings import FindingConfig
from r1train.config.grpo import GRPOConfig
from r1train.config.model import ModelConfig
from r1train.config.planning import PlanConfig
from r1train.config.process_reward import ProcessRewardConfig
from r1train.config.reference import ReferenceConfig
from r1train.config.rejection import RejectionConfig
from r1train.config.reward_model import RewardModelConfig
from r1train.config.rewards import RewardConfig
from r1train.config.rollout import RolloutConfig
from r1train.config.sample import SampleConfig
from r1train.config.schema import (
    ConfigError,
    CountOrZero,
    Section,
    Seed,
    Workers,
    laid_over,
    shown,
)
from r1train.config.search import SearchConfig
from r1train.config.sft import SFTConfig
from r1train.config.stages import FOLDER_RULE, StageConfig, names_a_folder
from r1train.config.steps import StepsConfig
from r1train.config.suite import SuiteConfig
from r1train.config.task import TaskConfig


@dataclass(frozen=True)
class Config(Section):
    """A whole run."""

    name: str = "run"
    """Name of the run and of its folder."""
    seed: Seed = 0
    """Every random draw of the run follows from it."""
    seeds: tuple[Seed, ...] = ()
    """The recipe is run from each of these, in folders seed-N of the run's (unset: one run, from
    `seed`)."""
    output_dir: str = "runs"
    """Folder that run folders are made in."""
    device: str = "auto"
    """"auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1"."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations. Of bfloat16 weights the optimizer steps float32 copies, or
    most updates would be rounded away."""
    precision: Literal["dtype", "fp8"] = "dtype"
    """Of the products of linear layers and experts: that of `dtype`, or FP8 with block scales.

    A `model.path` whose weights are FP8, as DeepSeek-V3's own, needs "fp8"; they stay FP8, in the
    rollout and in the checkpoint, and the optimizer keeps a float32 copy.
    """
    fp8_layers: str = "auto"
    """Which layers `precision = "fp8"` takes: "auto", those of which a record of this processor
    says that they train faster than in `dtype`; "all"; or patterns of names, by commas, such as
    "model.layers.*.mlp.*".
    """
    elementwise: bool = False
    """Whether norms, rotary positions, gates and residual adds run as fused ops.

    Results are the same, but where a row's sum of squares is added up in another order.
    """
    threads: Workers | None = None
    """PyTorch's CPU threads (unset: its default)."""
    processes: Workers = 1
    """Stages that are at work at the same time, each in a process of its own with `threads`, which
    must be set then: sums are split by their number, and what comes is what one process would
    leave. A stage begins once those that it needs are finished."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that the figures of metrics.jsonl go to as well; their packages must be installed
    (TRL's report_to)."""
    keep_checkpoints: CountOrZero = 2
    """How many of a stage's checkpoints to resume from are kept, the newest; 0: all."""
    stages: tuple[StageConfig, ...] = (
        StageConfig("sft", name="sft"),
        StageConfig("rl", name="grpo"),
    )
    """What `r1train run` does, in order: tables [[stages]], or a list of kinds."""
    result: str | None = None
    """The stage whose model and evaluations are the run's, where others come after it that are
    compared with it (unset: the last that has such)."""
    findings: tuple[FindingConfig, ...] = ()
    """What is compared over the seeds at the end."""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    steps: StepsConfig = field(default_factory=StepsConfig)
    process_reward: ProcessRewardConfig = field(default_factory=ProcessRewardConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    suite: SuiteConfig = field(default_factory=SuiteConfig)

    def check(self) -> None:
        self.require(bool(self.stages), "stages", "give at least one of sft, grpo")
        self.require(names_a_folder(self.name), "name", FOLDER_RULE)
        self.require(len(set(self.seeds)) == len(self.seeds), "seeds", "each seed at most once")
        counted = self.processes == 1 or self.threads is not None
        reason = "set threads too: by their number sums are split, so it decides what comes"
        self.require(counted, "processes", reason)
        prompted = any(dataset.system_prompt is not None for dataset in self.sft.datasets)
        reason = 'a system_prompt needs task.prompt_template = "chat"'
        chat = self.task.prompt_template == "chat"
        self.sft.require(chat or not prompted, "datasets", reason)
        unanswered = all(dataset.answer_field == "" for dataset in self.task.datasets)
        accurate = unanswered and "accuracy" in self.rewards.functions
        reason = 'accuracy compares with an answer, and no dataset has any (answer_field = "")'
        self.rewards.require(not accurate, "functions", reason)
        layers = all(self.patterns())
        self.require(layers, "fp8_layers", "expected auto, all, or patterns of names by commas")
        chosen = self.precision == "fp8" or self.fp8_layers == "auto"
        self.require(chosen, "fp8_layers", "means nothing without precision = 'fp8'")
        known = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is not None
        self.require(known, "device", "expected auto, cpu, cuda, or a number such as cuda:1")
        if self.eval.max_completion_length is None:
            length = self.rollout.max_completion_length
            object.__setattr__(self, "eval", replace(self.eval, max_completion_length=length))
        object.__setattr__(self, "stages", self._named_stages())
        for stage in self.stages:
            if stage.sections:
                self.of(stage)  # which says what is wrong with them

    def _named_stages(self) -> tuple[StageConfig, ...]:
        """The stages, each with a name of its own."""
        given = [stage.name for stage in self.stages if stage.name is not None]
        named: list[StageConfig] = []
        for stage in self.stages:
            names = [other.name for other in named]
            name = stage.name or stage.kind
            bare = not (stage.sections or stage.init or stage.seed is not None)
            if stage.name in names and not bare:
                raise ConfigError(f"stages: two are named {shown(name)}: give each its own name")
            number = 1
            while name in names or (name != stage.name and name in given):
                number += 1
                name = f"{stage.name or stage.kind}-{number}"
            named.append(replace(stage, name=name))
        return tuple(named)

    def of(self, stage: StageConfig) -> Config:
        """The options of one stage: those of the run, with its own sections laid over them."""
        own = {**stage.sections}
        if self.eval.max_completion_length == self.rollout.max_completion_length:
            own["eval"] = {"max_completion_length": None, **own.get("eval", {})}
        try:
            sections = {name: laid_over(getattr(self, name), own[name]) for name in own}
        except ConfigError as error:
            raise ConfigError(f"stage {shown(stage.name)}: {error}") from None
        return replace(self, stages=(replace(stage, sections={}),), **sections)

    def patterns(self) -> tuple[str, ...]:
        """`fp8_layers` as what it names, without the spaces around."""
        return tuple(part.strip() for part in self.fp8_layers.split(","))
