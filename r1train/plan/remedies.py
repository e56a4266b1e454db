"""What would make a stage fit that does not: options of the recipe, or more devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.plan import memory
from r1train.plan.hardware import Cluster
from r1train.plan.shapes import Shape
from r1train.plan.stages import SUPERVISED, StagePlan, plan_stage

CHECKPOINTING, LORA = "model.gradient_checkpointing=true", "model.lora_rank=32"
CACHE = "rollout.max_memory_gib=4"
FEWEST_TOKENS = 2048
MOST_DEVICES = 1 << 13
OF_TOKENS = ("activations", "loss", "backward pass")


def remedies(
    stage: StageConfig, config: Config, shape: Shape, cluster: Cluster, beside: Shape
) -> tuple[str, ...]:
    """Whatever alone would do: an option, two of them, more devices, sequences in parts."""

    def planned(options: Config, count: int = cluster.count) -> StagePlan:
        return plan_stage(stage, options, shape, Cluster(cluster.device, count), beside)

    def fits(options: Config, count: int = cluster.count) -> bool:
        return planned(options, count).memory.peak[1] <= usable

    usable = memory.USABLE * cluster.device.memory
    changes = dict(_changes(stage, config, shape))
    found = [name for name, changed in changes.items() if fits(changed)]
    if not found and CHECKPOINTING in changes and LORA in changes:
        both = replace(changes[LORA], model=replace(changes[LORA].model, **_CHECKPOINTED))
        found += [f"{CHECKPOINTING} with {LORA}"] * fits(both)
    least = changes.get(CHECKPOINTING, config)
    counts = [cluster.count << bit for bit in range(1, 14)]
    enough = next((n for n in counts if n <= MOST_DEVICES and fits(least, n)), None)
    if enough is not None:
        found.append(f"{enough} devices" + f" with {CHECKPOINTING}" * (least is not config))
    return (*found, *_split(planned(least), usable))


_CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}


def _changes(stage: StageConfig, config: Config, shape: Shape) -> Iterator[tuple[str, Config]]:
    """Options that take less memory."""
    if not config.model.gradient_checkpointing:
        yield CHECKPOINTING, replace(config, model=replace(config.model, **_CHECKPOINTED))
    names = {**dict.fromkeys(SUPERVISED, "sft"), "rl": "grpo", "on_policy_distill": "distill"}
    name = names.get(stage.kind, stage.kind)
    section: Any = getattr(config, name, None)
    tokens = getattr(section, "token_budget", 0) // 2
    while tokens >= FEWEST_TOKENS:
        changed: dict[str, Any] = {name: replace(section, token_budget=tokens)}
        yield f"{name}.token_budget={tokens}", replace(config, **changed)
        tokens //= 2
    yield CACHE, replace(config, rollout=replace(config.rollout, max_memory_gib=4.0))
    if not config.model.lora_rank and not (shape.fp8 and config.precision == "fp8"):
        yield LORA, replace(config, model=replace(config.model, lora_rank=32))


def _split(plan: StagePlan, usable: float) -> Iterator[str]:
    """Where it is the tokens of one sequence that are too many for a device."""
    name, peak = plan.memory.peak
    parts = plan.memory.phases[name]
    each = sum(parts.get(part, 0.0) for part in OF_TOKENS)
    for count in (2, 4, 8, 16):
        if each and peak - each + each / count <= usable < peak:
            yield f"each sequence split over {count} devices, which r1train cannot do"
            return
