"""Rewards by the names that `rewards.functions` gives them.

A new reward is one file beside this one, with a subclass of `Reward`, and one line in `BUILT_IN`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError, nearest, shown
from r1train.data.problems import ProblemSet
from r1train.rewards.accuracy import AccuracyReward
from r1train.rewards.base import Reward
from r1train.rewards.code import CodeReward
from r1train.rewards.custom.function import load_function
from r1train.rewards.custom.reward import CustomReward
from r1train.rewards.format import FormatReward
from r1train.rewards.judge.reward import JudgeReward
from r1train.rewards.language import LanguageReward
from r1train.rewards.preference import PreferenceReward, SafetyReward
from r1train.rewards.reflection import ReflectionReward
from r1train.rewards.repetition import RepetitionReward

Factory = Callable[[RewardConfig, ProblemSet], Reward]

BUILT_IN: dict[str, Factory] = {
    "accuracy": AccuracyReward,
    "format": FormatReward,
    "reflection": ReflectionReward,
    "language": LanguageReward,
    "repetition": RepetitionReward,
    "preference": PreferenceReward,
    "safety": SafetyReward,
    "judge": JudgeReward,
    "code": CodeReward,
}


def find_reward(function: str) -> tuple[str, Factory]:
    """The name that figures carry, and what makes the reward: built in, or a user's `file.py:name`.

    Raises ConfigError where there is no such reward, or the user's file cannot be imported.
    """
    if ":" in function:
        own = load_function(function)
        return own.name, partial(CustomReward, own)
    if function not in BUILT_IN:
        raise ConfigError(
            f"rewards.functions: unknown reward {shown(function)}: {nearest(function, BUILT_IN)}; "
            "a function of your own is file.py:name or package.module:name"
        )
    return function, BUILT_IN[function]
