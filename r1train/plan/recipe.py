"""The plan of a recipe on a cluster: every stage, what all of them cost, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.plan import memory
from r1train.plan.hardware import Cluster
from r1train.plan.remedies import remedies as remedies_of
from r1train.plan.shapes import Shape, shape_of
from r1train.plan.stages import SUPERVISED, StagePlan, plan_stage, rates_of
from r1train.plan.time import Rates


@dataclass(frozen=True)
class RecipePlan:
    """All stages on a cluster, in turn."""

    config: Config
    cluster: Cluster
    price: float
    """Dollars for an hour of a device."""
    rates: Rates
    stages: tuple[StagePlan, ...]
    left_out: tuple[str, ...]
    """Stages that no plan is known of."""
    remedies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each stage that does not fit, what would make it fit."""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return self.seconds / 3600 * self.cluster.count

    @property
    def cost(self) -> float:
        return self.device_hours * self.price

    @property
    def usable(self) -> float:
        return memory.USABLE * self.cluster.device.memory


def plan(config: Config, cluster: Cluster) -> RecipePlan:
    """The plan of every stage of `config`, which runs on all of the cluster's devices."""
    check_plan(config)
    at = rates_of(config, shape_of(config.model), cluster)
    stages: list[StagePlan] = []
    left_out: list[str] = []
    remedies: dict[str, tuple[str, ...]] = {}
    for stage, own, shape in _stages(config):
        try:
            found = plan_stage(stage, own, shape, cluster)
        except NotImplementedError:
            left_out.append(f"{stage.name} ({stage.kind})")
            continue
        stages.append(found)
        if found.memory.peak[1] > memory.USABLE * cluster.device.memory:
            remedies[found.name] = remedies_of(stage, own, shape, cluster)
    chosen = config.plan.price or cluster.device.price
    return RecipePlan(config, cluster, chosen, at, tuple(stages), tuple(left_out), remedies)


def _stages(config: Config) -> Iterator[tuple[StageConfig, Config, Shape]]:
    """Every stage with its own options, and the shape of the model that it starts from."""
    shapes: dict[str, Shape] = {}
    before = shape_of(config.model)
    for stage in config.stages:
        own, shape = config.of(stage), before
        if stage.init is not None and stage.init in shapes:
            shape = shapes[stage.init]
        elif stage.init is not None and stage.init.startswith("preset:"):
            preset = stage.init.removeprefix("preset:")
            shape = shape_of(replace(config.model, preset=preset, path=None, gguf_file=None))
        elif stage.init is not None:
            path = stage.init
            shape = shape_of(replace(config.model, preset=None, path=path, gguf_file=None))
        shapes[str(stage.name)] = shape
        if stage.kind in (*SUPERVISED, "rl", "on_policy_distill"):
            before = shape
        yield stage, own, shape


def check_plan(config: Config) -> None:
    """There is a shape to plan with."""
    if config.model.path is None and config.model.preset is None:
        raise ConfigError(
            "model.path is unset: a plan needs a model, such as model.path=Qwen2.5-3B"
        )
