"""Preference: what a reward model says of completions that no rule can verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from r1train.config.judgements import PreferenceRewardConfig
from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.data.encode import encode_scored
from r1train.data.problems import ProblemSet
from r1train.data.samples import Sample
from r1train.model.folder import from_folder
from r1train.model.load import device_of
from r1train.rewards.base import Reward, Scores
from r1train.rewards.judged import judged, part_of


class PreferenceReward(Reward):
    """The score of a sequence-classification model with one label, as it is; None where rules
    decide. R1 judges helpfulness by the summary alone, and safety by the whole response.

    ConfigError where `rewards.preference.path` has no such model.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.config = self.options(config)
        path = self.config.path
        reason = 'give the folder of a reward model, or "stage:NAME" of a stage that leaves one'
        self.config.require(path is not None, "path", reason)
        assert path is not None
        self.config.require(Path(path).is_dir(), "path", "no such folder")
        self.model, self.tokenizer = from_folder(
            Path(path),
            dtype=getattr(torch, self.config.dtype),
            auto=AutoModelForSequenceClassification,
        )
        if self.model.config.num_labels != 1:
            labels = f"expected a model with one label, and it has {self.model.config.num_labels}"
            raise ConfigError(f"{self.config.key('path')} = {path!r}: {labels}")
        if self.config.template == "chat" and not self.tokenizer.chat_template:
            reason = "the tokenizer of the reward model has no chat template: choose 'task'"
            raise ConfigError(f"{self.config.key('template')} = 'chat': {reason}")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        torch.nn.Module.to(self.model.eval().requires_grad_(False), device_of(self.config))

    @staticmethod
    def options(config: RewardConfig) -> PreferenceRewardConfig:
        """Which table of the rewards it goes by."""
        return config.preference

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        rows = judged(samples, self.config.applies)
        values: list[float | None] = [None] * len(samples)
        encoded = {row: self._encode(samples[row]) for row in rows}
        rows.sort(key=lambda row: len(encoded[row]))  # so that little is padding
        for start in range(0, len(rows), self.config.batch_size):
            batch = rows[start : start + self.config.batch_size]
            for row, value in zip(batch, self._scores([encoded[r] for r in batch]), strict=True):
                values[row] = value
        return Scores(values)

    @torch.no_grad()
    def _scores(self, batch: Sequence[list[int]]) -> list[float]:
        device, pad = self.model.device, self.tokenizer.pad_token_id
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch], device=device)
        lengths = torch.tensor([len(row) for row in batch], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        scores = self.model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float()
        return [float(score) for score in scores]

    def _encode(self, sample: Sample) -> list[int]:
        said = part_of(sample, self.config.part)
        if self.config.template == "chat":
            messages = sample.problem.messages or (("user", sample.problem.question),)
            asked = [{"role": role, "content": content} for role, content in messages]
            tokenizer: Any = self.tokenizer
            ids = tokenizer.apply_chat_template(
                [*asked, {"role": "assistant", "content": said}], return_dict=False
            )
            return list(ids[: self.config.max_length])
        own = self.tokenizer.bos_token
        rendered = "chat" if own and sample.prompt.startswith(own) else ""
        start, end = encode_scored(self.tokenizer, sample.prompt, said, rendered)
        return [*start, *end][: self.config.max_length]


class SafetyReward(PreferenceReward):
    """The same of a second reward model, that of the table `rewards.safety`."""

    @staticmethod
    def options(config: RewardConfig) -> PreferenceRewardConfig:
        return config.safety
