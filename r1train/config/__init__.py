"""Every option of a run, as checked dataclasses and as TOML."""

from r1train.config.distill import DistillConfig
from r1train.config.evaluation import EvalConfig
from r1train.config.grpo import GRPOConfig, LossType
from r1train.config.judgements import JudgeConfig, PreferenceRewardConfig, SafetyRewardConfig
from r1train.config.model import ModelConfig
from r1train.config.planning import PlanConfig
from r1train.config.process_reward import ProcessRewardConfig
from r1train.config.reference import ReferenceConfig
from r1train.config.rejection import RejectionConfig
from r1train.config.reward_model import PreferencesConfig, RewardModelConfig
from r1train.config.rewards import RepetitionConfig, RewardConfig
from r1train.config.rollout import RolloutConfig
from r1train.config.sample import SampleConfig
from r1train.config.search import SearchConfig
from r1train.config.sections import Config
from r1train.config.sft import DemonstrationsConfig, SFTConfig
from r1train.config.stages import StageConfig
from r1train.config.steps import StepsConfig
from r1train.config.suite import SuiteConfig
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.config.training import Schedule

__all__ = [
    "Config",
    "DatasetConfig",
    "DemonstrationsConfig",
    "DistillConfig",
    "EvalConfig",
    "GRPOConfig",
    "JudgeConfig",
    "LossType",
    "ModelConfig",
    "PlanConfig",
    "PreferenceRewardConfig",
    "PreferencesConfig",
    "ProcessRewardConfig",
    "ReferenceConfig",
    "RejectionConfig",
    "RepetitionConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RolloutConfig",
    "SFTConfig",
    "SafetyRewardConfig",
    "SampleConfig",
    "Schedule",
    "SearchConfig",
    "StageConfig",
    "StepsConfig",
    "SuiteConfig",
    "TaskConfig",
]
