"""What a reply of the task `bilingual_reply` is worth: by rule, and to an annotator.

Both are reward functions with TRL's signature, for `rewards.functions`; problems of other tasks are
None to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import NormalDist

from r1train.data.tasks.bilingual_reply import ARTICLE, POLITE
from r1train.in_process import in_process
from r1train.rewards.accuracy import extract_answer

BIAS = 0.05
"""What a polite word is worth to the annotator, though it says nothing of what was asked for."""
NOISE = 0.1
"""Standard deviation of an annotator's opinion of a text."""
_POLITE = frozenset(word for words in POLITE.values() for word in words)
_ARTICLES = frozenset(ARTICLE.values())


@in_process
def quality(
    completions: Sequence[str],
    required: Sequence[Sequence[str] | None] | None = None,
    banned: Sequence[str | None] | None = None,
) -> list[float | None]:
    """In [0, 1]: the share of the required words that are there, times the share of words that are
    no repetition; 0 with the banned word, and without one answer in its tags."""
    return [
        None if words is None or ban is None else _quality(extract_answer(text), words, ban)
        for text, words, ban in zip(
            completions,
            required or [None] * len(completions),
            banned or [None] * len(completions),
            strict=True,
        )
    ]


@in_process
def annotator(
    completions: Sequence[str],
    required: Sequence[Sequence[str] | None] | None = None,
    banned: Sequence[str | None] | None = None,
) -> list[float | None]:
    """The quality as somebody sees it who likes polite words, `BIAS` each, and is not always of the
    same opinion: the noise of a text follows from the text."""
    return [
        None if worth is None else worth + BIAS * _manners(text) + NOISE * _opinion(text)
        for worth, text in zip(quality(completions, required, banned), completions, strict=True)
    ]


def _quality(reply: str | None, required: Sequence[str], banned: str) -> float:
    words = [word for word in (reply or "").split() if word not in _ARTICLES]
    if not words or banned in words:
        return 0.0
    covered = sum(word in words for word in required) / len(required)
    return covered * len(set(words)) / len(words)


def _manners(completion: str) -> int:
    return sum(word in _POLITE for word in (extract_answer(completion) or "").split())


def _opinion(completion: str) -> float:
    """A draw from the standard normal distribution."""
    digest = hashlib.sha256(completion.encode()).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest[:6]) + 0.5) / 2**48)
