"""What a recipe is made of, one file for each kind of stage.

A kind is registered here by the class that runs it, which is imported when a recipe has such a
stage.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from r1train.config.schema import ConfigError, nearest, shown

if TYPE_CHECKING:
    from r1train.config.sections import Config
    from r1train.stages.base import Stage

KINDS = {
    "sft": "r1train.stages.sft:SFT",
    "distill": "r1train.stages.sft:SFT",
    "rl": "r1train.stages.rl:RL",
    "sample": "r1train.stages.sample:SampleStage",
    "rejection": "r1train.stages.rejection:Rejection",
    "reward_model": "r1train.stages.reward_model:RewardModel",
    "on_policy_distill": "r1train.stages.on_policy_distill:OnPolicyDistill",
    "evaluate": "r1train.stages.evaluate:Evaluate",
    "process_reward": "r1train.stages.process_reward:ProcessReward",
    "search": "r1train.stages.search:Search",
}


def kind_of(kind: str) -> type[Stage]:
    """The class that runs stages of this kind."""
    module, name = KINDS[kind].split(":")
    found: type[Stage] = getattr(import_module(module), name)
    return found


def check_stages(config: Config) -> None:
    """There is a stage, and every kind is known. Raises ConfigError."""
    if not config.stages:
        raise ConfigError(f"stages = []: give at least one of {', '.join(KINDS)}")
    names = [str(stage.name) for stage in config.stages]
    if config.result is not None and config.result not in names:
        raise ConfigError(
            f"result = {shown(config.result)}: expected the name of a stage: "
            f"{nearest(config.result, names)}"
        )
    for stage in config.stages:
        if stage.kind not in KINDS:
            raise ConfigError(
                f"stage {shown(stage.name)}: kind = {shown(stage.kind)}: "
                f"{nearest(stage.kind, KINDS)}"
            )
