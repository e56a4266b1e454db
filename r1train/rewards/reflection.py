"""Reflection: how many words of second thoughts a completion has. To be watched, not to be paid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores

WORDS = (
    *("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate"),
    "check",
)
"""Those that DeepSeek-R1's authors counted through R1-Zero's training (arXiv 2501.12948 v2,
appendix C.2), where they became five to seven times as frequent."""
CHINESE = ("等等", "等一下", "不对", "错误", "但是", "然而", "检查", "验证")
"""Their like; found without spaces around them."""

_FOUND = re.compile(rf"\b(?:{'|'.join(WORDS)})\b|{'|'.join(CHINESE)}", re.IGNORECASE)


def reflective_words(text: str) -> int:
    """How often `text` has one of `WORDS`, as a whole word, or of `CHINESE`."""
    return sum(1 for _ in _FOUND.finditer(text))


class ReflectionReward(Reward):
    """The number of reflective words of each completion. With a weight of 0 it is a figure of the
    log and of evaluations; with any other a policy would learn to say these words."""

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return Scores([float(reflective_words(sample.completion)) for sample in samples])
