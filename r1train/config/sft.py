"""Supervised training, and where demonstrations come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar, Literal

from r1train.config.schema import Count, CountOrZero, Decay, Positive, Section, Share
from r1train.config.task import OnBadRow
from r1train.config.training import TrainingConfig


@dataclass(frozen=True)
class DemonstrationsConfig(Section, section="sft.datasets"):
    """One source of demonstrations: prompts with completions, or conversations."""

    path: str
    """JSONL, Parquet or Arrow file, folder of such files or of `datasets`, or a pattern with *."""
    prompt_field: str | None = None
    """Key of the prompt, text or chat messages (unset: "prompt" or "question")."""
    completion_field: str | None = None
    """Key of what is to be said, text or one message of the assistant (unset: "completion")."""
    messages_field: str = "messages"
    """Key of a conversation; a row that has it needs no prompt and no completion."""
    learned_turns: Literal["last", "all"] = "last"
    """Which of the assistant's messages of a conversation the loss is of: the last, which must end
    it, or all of them (TRL's assistant_only_loss). Prompts have no loss."""
    system_prompt: str | None = None
    """System message of this source's "chat" prompts (unset: task.system_prompt)."""
    on_bad_row: OnBadRow = "error"
    """What a row does that cannot be used, or has more tokens than the model positions: "error"
    ends the run before it starts, naming them all; "skip" leaves them out with a warning."""
    weight: Positive | None = None
    """Share of the demonstrations, relative to the other weights (unset: 1; if none is given, all
    files are used whole)."""


@dataclass(frozen=True)
class SFTConfig(TrainingConfig, section="sft"):
    """Supervised phase before RL: a cold start, or what stands in for pre-training."""

    exclusive: ClassVar[tuple[str, ...]] = ("max_steps", "num_train_epochs")

    datasets: tuple[DemonstrationsConfig, ...] = ()
    """Demonstrations to learn from (unset: worked solutions of task.datasets, by rule)."""
    max_steps: Count | None = None
    """Optimizer steps (unset: those of num_train_epochs, else 200)."""
    num_train_epochs: Positive | None = None
    """How many times all demonstrations of `datasets` are learnt, in each epoch once and in an
    order of its own, in place of max_steps (R1: 2 to 3)."""
    batch_size: Count = 128
    """Examples a step (R1: 128)."""
    learning_rate: Positive = 5e-5
    """Peak learning rate (R1: 5e-5)."""
    min_lr_rate: Share = 0.1
    """Where "linear" and "cosine" end, as a share of the peak (R1: 0.1)."""
    warmup_ratio: Share = 0.05
    """Share of the steps over which the rate rises from 0."""
    adam_beta2: Decay = 0.95
    """Decay of the second moment."""
    teacher_accuracy: Share = 1.0
    """Share of worked solutions whose answer is right; below 1 leaves RL something to improve."""
    teacher_format: Share = 1.0
    """Share of worked solutions with the right tags."""
    teacher_params: dict[str, Any] = field(default_factory=dict)
    """Tables of what else is told to the solvers of tasks, by the names of these."""
    teacher_problems: Count | None = None
    """Worked solutions of so many problems alone, one each (unset: of all, new ones at every
    step)."""
    teacher_shots: CountOrZero = 0
    """At most so many solved problems stand before a question; how many is drawn anew for each."""

    def examples(self, demonstrations: int) -> int | None:
        """How many are learnt in all, of so many that there are; None where max_steps decides."""
        if self.num_train_epochs is None:
            return None
        return max(1, round(self.num_train_epochs * demonstrations))

    def steps(self, demonstrations: int = 0) -> int:
        """Optimizer steps, where there are so many demonstrations."""
        examples = self.examples(demonstrations)
        return (self.max_steps or 200) if examples is None else ceil(examples / self.batch_size)
