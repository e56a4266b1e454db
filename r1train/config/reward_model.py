"""Reward models: what they learn from, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from r1train.config.schema import (
    Bound,
    Count,
    Decay,
    NonNegative,
    Positive,
    Section,
    Share,
    Size,
)
from r1train.config.task import OnBadRow
from r1train.config.training import TrainingConfig

Ratio = Annotated[float, Bound(1.0, 1e30)]


@dataclass(frozen=True)
class PreferencesConfig(Section, section="reward_model.datasets"):
    """One source of judgements: pairs (`chosen`, `rejected`), completions with a `label`, or
    samples with a score, of which the best and the worst of a prompt are a pair."""

    path: str
    """JSONL, Parquet or Arrow file, folder of such files or of `datasets`, a pattern with *, or
    "stage:NAME" for the samples of a stage."""
    prompt_field: str | None = None
    """Key of the prompt, text or chat messages (unset: "prompt" or "question")."""
    chosen_field: str = "chosen"
    """Key of the better response: text, a message of the assistant, or a whole conversation."""
    rejected_field: str = "rejected"
    """Key of the worse one."""
    completion_field: str = "completion"
    """Key of a single response, which has a label or a score."""
    label_field: str = "label"
    """Key of whether a single response is good: true, false, 1 or 0."""
    score_field: str | None = None
    """Key of the score of a single response, such as "reward" of sampled completions: for rows
    without `chosen`."""
    chosen_scores_field: str = "score_chosen"
    """Key of the score that a judge gave the better response, or of a list of several, such as
    those of both orders of a pair: their mean counts."""
    rejected_scores_field: str = "score_rejected"
    """Key of those of the worse one."""
    min_margin: NonNegative = 0.0
    """Pairs with scores are used where these differ by more (R1: 1, of scores from 1 to 10)."""
    max_length_ratio: Ratio | None = None
    """How many times as many tokens as the other the longer response of a pair may have (R1 kept
    the lengths comparable, since judges favour long ones; unset: any)."""
    on_bad_row: OnBadRow = "error"
    """What a row does that cannot be used: "error" ends the run before it trains, naming all of
    them; "skip" leaves them out with a warning."""


@dataclass(frozen=True)
class RewardModelConfig(TrainingConfig, section="reward_model"):
    """A model with one number for an answer, trained as R1's: 66K pairs for helpfulness, 106K
    labelled answers for safety."""

    datasets: tuple[PreferencesConfig, ...] = ()
    """Judgements to learn from, all of them together."""
    objective: Literal["pairwise", "pointwise"] = "pairwise"
    """"pairwise": −log σ(r_chosen − r_rejected), Bradley and Terry's; "pointwise": binary
    cross-entropy of labels (R1: for helpfulness, and for safety)."""
    part: Literal["summary", "response"] = "summary"
    """What is judged: "summary", what follows the thoughts (R1: helpfulness), or the whole
    "response" (R1: safety)."""
    num_train_epochs: Positive = 1.0
    """How many times each judgement is learnt (R1: 1)."""
    batch_size: Count = 256
    """Judgements an optimizer step (R1: 256)."""
    learning_rate: Positive = 6e-6
    """Peak learning rate (R1: 6e-6)."""
    min_lr_rate: Share = 0.1
    """Where "linear" and "cosine" end, as a share of the peak."""
    warmup_ratio: Share = 0.05
    """Share of the steps over which the rate rises from 0."""
    adam_beta2: Decay = 0.95
    """Decay of the second moment."""
    max_length: Count = 8192
    """Tokens of prompt and response together; longer ones are left out (R1: 8,192)."""
    heldout_size: Size | None = None
    """Judgements that are kept apart, of prompts of their own, for the accuracy in table.json
    (unset: a tenth, but at most 512)."""
