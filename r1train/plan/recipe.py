"""The plan of a recipe on a cluster: every stage, what all of them cost, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.stages import MARK, StageConfig
from r1train.plan import memory
from r1train.plan.hardware import Cluster
from r1train.plan.remedies import remedies as remedies_of
from r1train.plan.shapes import Shape, shape_of
from r1train.plan.sources import Left, left_by, with_sources
from r1train.plan.stages import ROLLED_OUT, SAMPLED, SUPERVISED, StagePlan, plan_stage, rates_of
from r1train.plan.time import Rates
from r1train.stages import check_stages


@dataclass(frozen=True)
class RecipePlan:
    """All stages on a cluster, in turn."""

    config: Config
    cluster: Cluster
    price: float
    """Dollars for an hour of a device."""
    rates: Rates
    stages: tuple[StagePlan, ...]
    remedies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each stage that does not fit, what would make it fit."""

    @property
    def impossible(self) -> tuple[str, ...]:
        """Stages that cannot sample a completion, so that nothing is known of the whole."""
        return tuple(stage.name for stage in self.stages if not stage.possible)

    @property
    def seeds(self) -> int:
        return len(self.config.seeds) or 1

    @property
    def seconds(self) -> float:
        """Of all seeds."""
        return self.seeds * sum(stage.seconds for stage in self.stages)

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
    remedies: dict[str, tuple[str, ...]] = {}
    for stage, own, shape, beside in _stages(config):
        found = plan_stage(stage, own, shape, cluster, beside)
        stages.append(found)
        if found.memory.peak[1] > memory.USABLE * cluster.device.memory:
            remedies[found.name] = remedies_of(stage, own, shape, cluster, beside)
    chosen = config.plan.price or cluster.device.price
    return RecipePlan(config, cluster, chosen, at, tuple(stages), remedies)


def _stages(config: Config) -> Iterator[tuple[StageConfig, Config, Shape, Shape]]:
    """Every stage with its own options, the shape of the model that it starts from, and that of its
    teacher or value model (its own, where it has none)."""
    shapes: dict[str, Shape] = {}
    left: dict[str, Left] = {}
    before = shape_of(config.model)
    for stage in config.stages:
        own = with_sources(stage, config.of(stage), left)
        shape = before if stage.init is None else _shape(stage.init, config, shapes)
        shapes[str(stage.name)] = shape
        if stage.kind in SAMPLED:
            left[str(stage.name)] = left_by(stage, own, left)
        if stage.kind in (*SUPERVISED, *ROLLED_OUT):
            before = shape
        helpers = {"on_policy_distill": own.distill.teacher, "search": own.search.value_model}
        helper = helpers.get(stage.kind)
        yield stage, own, shape, shape if helper is None else _shape(helper, config, shapes)


def _shape(origin: str, config: Config, shapes: Mapping[str, Shape]) -> Shape:
    """That of a stage's model, of a preset, or of a folder."""
    name = origin.removeprefix(MARK)
    if name in shapes:
        return shapes[name]
    preset = origin.removeprefix("preset:") if origin.startswith("preset:") else None
    path = None if preset else origin
    return shape_of(replace(config.model, preset=preset, path=path, gguf_file=None))


def check_plan(config: Config) -> None:
    """There is a shape to plan with, and every kind of stage is known."""
    check_stages(config)
    if config.model.path is None and config.model.preset is None:
        raise ConfigError(
            "model.path is unset: a plan needs a model, such as model.path=Qwen2.5-3B"
        )
