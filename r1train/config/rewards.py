"""What completions are worth, and to whom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from r1train.config.code import CodeConfig
from r1train.config.judgements import JudgeConfig, PreferenceRewardConfig, SafetyRewardConfig
from r1train.config.schema import Count, NonNegative, Seconds, Section, Workers

AnswerIn = Literal["block", "box"]


@dataclass(frozen=True)
class RepetitionConfig(Section, section="rewards.repetition"):
    """The reward "repetition": minus the share of n-grams that were there before."""

    ngram_size: Count = 3
    """Words of an n-gram (Open-R1: 3)."""


@dataclass(frozen=True)
class RewardConfig(Section, section="rewards"):
    """Reward functions and the processes they run in."""

    functions: tuple[str, ...] = ("accuracy", "format")
    """Built-in rewards (R1 uses these two for R1-Zero), and functions of your own with TRL's
    signature, as "file.py:name" or "package.module:name"."""
    weights: tuple[NonNegative, ...] | None = None
    """Weight of each function in the sum (unset: 1; TRL's reward_weights; R1 weighs both alike)."""
    answer_in: AnswerIn = "block"
    """Where a completion has its answer: in the only <answer> block, which R1-Zero's instruction
    asks for, or in the last \\boxed{} after its thoughts, as models of mathematics are asked. The
    reward "format" asks for the block all the same."""
    timeout: Seconds = 5.0
    """Seconds that a verifier may take for one answer, and a function of your own for a batch,
    before its process is killed and the time-out counted."""
    workers: Workers = 1
    """Number of verifier processes, of processes for each function of your own, and of
    programs that are run at once."""
    code: CodeConfig = field(default_factory=CodeConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    preference: PreferenceRewardConfig = field(default_factory=PreferenceRewardConfig)
    safety: SafetyRewardConfig = field(default_factory=SafetyRewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def check(self) -> None:
        self.require(bool(self.functions), "functions", "give at least one reward function")
        unique = len(set(self.functions)) == len(self.functions)
        self.require(unique, "functions", "each function at most once")
        paired = self.weights is None or len(self.weights) == len(self.functions)
        self.require(paired, "weights", f"expected {len(self.functions)}, one for each function")

    def on(self, device: str) -> RewardConfig:
        """The same with reward models on this device, where they are on none of their own."""
        return replace(
            self,
            preference=replace(self.preference, device=self.preference.device or device),
            safety=replace(self.safety, device=self.safety.device or device),
        )
