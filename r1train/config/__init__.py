"""Every option of a run, as checked dataclasses and as TOML."""

from r1train.config.sections import (
    Config,
    DatasetConfig,
    DemonstrationsConfig,
    EvalConfig,
    GRPOConfig,
    LossType,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    Schedule,
    SFTConfig,
    StageConfig,
    TaskConfig,
)

__all__ = [
    "Config",
    "DatasetConfig",
    "DemonstrationsConfig",
    "EvalConfig",
    "GRPOConfig",
    "LossType",
    "ModelConfig",
    "RewardConfig",
    "RolloutConfig",
    "SFTConfig",
    "Schedule",
    "StageConfig",
    "TaskConfig",
]
