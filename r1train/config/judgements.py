"""Rewards of models: reward models, and a judge that is asked over HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from r1train.config.endpoint import EndpointConfig
from r1train.config.schema import Count, Section

Part = Literal["summary", "response"]
Applies = Literal["unverifiable", "all"]


@dataclass(frozen=True)
class PreferenceRewardConfig(Section, section="rewards.preference"):
    """The reward "preference": what a reward model says of a completion, as it says it."""

    path: str | None = None
    """HuggingFace folder of a sequence-classification model with one label, or "stage:NAME"."""
    part: Part = "summary"
    """What is judged: "summary", what follows </think> (R1: helpfulness), or the whole
    "response" (R1: safety)."""
    applies: Applies = "unverifiable"
    """To which problems: those without a reference answer (R1: rules for the others), or all."""
    template: Literal["task", "chat"] = "task"
    """How the question is put before it: "task", as the policy saw it, for a reward model of the
    recipe itself; "chat", by the reward model's own chat template, for published ones."""
    max_length: Count = 8192
    """Tokens of question and completion that are read; what comes after them is not (R1: 8,192)."""
    batch_size: Count = 16
    """Completions that are judged at once."""
    device: str | None = None
    """"auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1" (unset: the run's)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of its weights."""

    def check(self) -> None:
        known = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device or "auto") is not None
        self.require(known, "device", "expected auto, cpu, cuda, or a number such as cuda:1")


@dataclass(frozen=True)
class SafetyRewardConfig(PreferenceRewardConfig, section="rewards.safety"):
    """The reward "safety": a second reward model, which reads the whole response."""

    part: Part = "response"
    """What is judged: "summary" or "response" (R1: all that is said may do harm)."""


@dataclass(frozen=True)
class JudgeConfig(EndpointConfig, section="rewards.judge"):
    """The reward "judge": what a language model says of a completion, from 0 to 1."""

    rubric: str | None = None
    """What is good, in words (unset: helpful, right, complete and clear)."""
    reference_field: str | None = None
    """Column of the problems with a response to compare with, in both orders: 1 where the
    completion is the better one (unset: a score by the rubric alone)."""
    part: Part = "summary"
    """What is judged: "summary", what follows </think>, or the whole "response"."""
    applies: Applies = "unverifiable"
    """To which problems: those without a reference answer, or all."""
