"""What stages leave to others, which bounds what these learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from r1train.config.rejection import RejectionConfig
from r1train.config.sections import Config
from r1train.config.stages import MARK, StageConfig
from r1train.plan.stages import SUPERVISED, sampled_of


@dataclass(frozen=True)
class Left:
    """Samples of a stage, at most."""

    prompts: int
    samples: int


def left_by(stage: StageConfig, config: Config, left: Mapping[str, Left]) -> Left:
    """Of a stage that samples, given what those before it have left."""
    prompts, each = sampled_of(stage, config)
    if stage.kind != "rejection":
        return Left(prompts, prompts * each)
    section: RejectionConfig = config.rejection
    kept = prompts * min(section.keep or each, each)
    further = round(kept * section.mix_share / (1 - section.mix_share)) if section.mix else 0
    known = _of([source.path for source in section.mix], left)
    if known is not None:
        further = min(further, sum(one.samples for one in known))
    return Left(prompts, kept + further)


def with_sources(stage: StageConfig, config: Config, left: Mapping[str, Left]) -> Config:
    """Options that suppose as many demonstrations, or judgements, as the stages leave that a stage
    learns from; the same where it learns from files, or says the number itself."""
    pairs = stage.kind == "reward_model" and config.reward_model.objective == "pairwise"
    section = config.sft if stage.kind in SUPERVISED else config.reward_model
    if stage.kind not in (*SUPERVISED, "reward_model"):
        return config
    known = _of([source.path for source in section.datasets], left)
    if not known or "demonstrations" in stage.sections.get("plan", {}):
        return config
    count = sum(one.prompts if pairs else one.samples for one in known)  # a pair of each prompt
    return replace(config, plan=replace(config.plan, demonstrations=count))


def _of(paths: list[str], left: Mapping[str, Left]) -> list[Left] | None:
    """What these stages leave; None where one is no such stage."""
    names = [path.removeprefix(MARK) for path in paths if path.startswith(MARK)]
    if len(names) < len(paths) or not left.keys() >= {*names}:
        return None
    return [left[name] for name in names]
