"""DROP's F1, as its authors' evaluation computes it (Dua et al. 2019, arXiv 1903.00161)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from statistics import fmean

from r1train.suite.metrics.base import MetricBase, Response, Score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PARTS = re.compile(r",\s*(?:and\s+)?|\s+and\s+|;\s*|\n")
_MOST_SPANS = 12


class DropMetric(MetricBase):
    """F1 of the words of an answer, the best over the annotators' answers."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [Score(best_f1(one.answer or "", one.question.reference)) for one in responses]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        right = [
            any(
                sorted(map(normalized, spans)) == sorted(map(normalized, gold))
                for gold in one.question.reference
                for spans in [spans_of(one.answer or "", gold)]
            )
            for one in responses
        ]
        return {"exact_match": fmean(right)}


def best_f1(answer: str, references: Sequence[Sequence[str]]) -> float:
    """Over the references, each the spans that one annotator gave."""
    return max((f1(spans_of(answer, gold), gold) for gold in references if gold), default=0.0)


def spans_of(answer: str, gold: Sequence[str]) -> list[str]:
    """An answer as spans: parted where several are expected."""
    if len(gold) == 1:
        return [answer]
    return [part for part in _PARTS.split(answer) if part.strip()][:_MOST_SPANS] or [""]


def f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Mean over spans, aligned for the highest sum; what has no partner counts 0. In two digits,
    as the authors round it."""
    bags = [set(normalized(span).split()) for span in predicted]
    wanted = [set(normalized(span).split()) for span in gold[:_MOST_SPANS]]
    pairs = [[_bag_f1(bag, other) for other in wanted] for bag in bags]

    @cache
    def aligned(row: int, left: int) -> float:
        """The highest sum of the bags from `row` on with the spans whose bits are in `left`."""
        if row == len(pairs):
            return 0.0
        chosen = [aligned(row + 1, left)]
        for i, score in enumerate(pairs[row]):
            if left >> i & 1:
                chosen.append(score + aligned(row + 1, left & ~(1 << i)))
        return max(chosen)

    return round(aligned(0, (1 << len(wanted)) - 1) / max(len(bags), len(gold)), 2)


def normalized(text: str) -> str:
    """Lower case, without articles and punctuation, numbers as floats."""
    tokens = (_ARTICLES.sub(" ", _number(_bare(token.lower()))) for token in re.split(" |-", text))
    return " ".join(" ".join(token.split()) for token in tokens if token.strip()).strip()


def _bag_f1(predicted: set[str], gold: set[str]) -> float:
    """0 where the gold span has numbers, and none of them is predicted."""
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    common = len(predicted & gold)
    precision = common / len(predicted) if predicted else 1.0
    recall = common / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bare(token: str) -> str:
    if _is_number(token):
        return token
    return "".join(c for c in token if c not in string.punctuation)


def _number(token: str) -> str:
    return str(float(token)) if _is_number(token) else token
