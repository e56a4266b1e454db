"""Format: whether a completion is a chain of thought and an answer in their tags."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1train.answers.clean import is_blank
from r1train.data.prompts import TAGS, opens_think
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores

_FORMAT = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def format_reward(completion: str, think_opened: bool = False) -> float:
    """1 for <think>…</think><answer>…</answer>, once each, not empty, with nothing outside, else 0.

    `think_opened` says that the prompt ended in <think>, so that the completion starts inside it.
    """
    text = "<think>" + completion if think_opened else completion
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    match = _FORMAT.fullmatch(text)
    return float(match is not None and not any(map(is_blank, match.groups())))


class FormatReward(Reward):
    """`format_reward` of each completion, which starts inside the tags that its prompt opens."""

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return Scores([format_reward(s.completion, opens_think(s.prompt)) for s in samples])
