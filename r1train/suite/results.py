"""The figures of a benchmark, from the scores of its completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from r1train.report.evaluation import Interval
from r1train.report.statistics import Paired, paired_test, pass_at_k, share_interval
from r1train.stages.evaluate import vote
from r1train.suite.metrics.base import Response, Score
from r1train.suite.questions import Question
from r1train.suite.sampling import Sampled
from r1train.suite.specs import Benchmark


@dataclass(frozen=True)
class Result:
    """A benchmark on a model; shares are in [0, 1], intervals are over questions."""

    benchmark: str
    title: str
    k: int
    questions: int
    mean: float
    """pass@1: the mean score over k completions, and over questions."""
    mean_ci: Interval
    cons: float | None
    """cons@k: the score of the most frequent answer; None where answers cannot agree."""
    cons_ci: Interval | None
    pass_at: dict[str, float]
    """Unbiased pass@k' for powers of two up to k, where every score is 0 or 1."""
    truncated: float
    """Share of completions that the limit cut off."""
    unanswered: float
    """Share in which no answer was found."""
    unjudged: int
    """Completions that could not be judged; they count nowhere."""
    mean_tokens: float
    tokens: int
    """Of all completions together."""
    figures: dict[str, float]
    """What the metric reports besides."""
    by_subject: dict[str, float]
    """Mean score by subject or level, where the files name them."""
    per_question: dict[str, float]
    """Mean score of each question that was judged, by id: what a paired test compares."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What it was made with: model, questions, sampling."""

    def save(self, path: Path) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result | None:
        """The result in a file; None where there is none that is whole."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            for name in ("mean_ci", "cons_ci"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def summarize(
    benchmark: Benchmark,
    questions: Sequence[Question],
    sampled: Sequence[Sampled],
    responses: Sequence[Sequence[Response]],
    scores: Sequence[Sequence[Score]],
    extra: Mapping[str, float],
    confidence: float,
    settings: Mapping[str, Any],
) -> Result:
    """What the k `responses` and `scores` of each question say together."""
    k = len(scores[0])
    values = [[one.value for one in group if one.value is not None] for group in scores]
    means = {q.id: fmean(v) for q, v in zip(questions, values, strict=True) if v}
    binary = all(value in (0.0, 1.0) for group in values for value in group)
    whole = binary and all(len(group) == k for group in values)
    cons = None
    if benchmark.votes and k > 1 and whole:
        kind = "choice" if benchmark.metric == "choice" else "auto"
        cons = [
            vote([one.answer for one in group], given, kind)
            for group, given in zip(responses, values, strict=True)
        ]
    judged = list(means.values())
    everything = [one for group in responses for one in group]
    return Result(
        benchmark=benchmark.name,
        title=benchmark.title,
        k=k,
        questions=len(questions),
        mean=fmean(judged) if judged else float("nan"),
        mean_ci=share_interval(judged, confidence, k) if judged else (0.0, 1.0),
        cons=fmean(cons) if cons else None,
        cons_ci=share_interval(cons, confidence) if cons else None,
        pass_at=_pass_at(values, k) if whole else {},
        truncated=fmean(not ended for one in sampled for ended in one.finished),
        unanswered=fmean(one.answer is None for one in everything),
        unjudged=sum(one.value is None for group in scores for one in group),
        mean_tokens=fmean(count for one in sampled for count in one.tokens),
        tokens=sum(sum(one.tokens) for one in sampled),
        figures=dict(extra),
        by_subject=_by_subject(questions, means),
        per_question=means,
        settings=dict(settings),
    )


def compare(ours: Result, other: Result, confidence: float) -> Paired | None:
    """A paired test on the questions that both were asked; None where there are none."""
    shared = [one for one in ours.per_question if one in other.per_question]
    if not shared:
        return None
    left, right = ([one.per_question[name] for name in shared] for one in (ours, other))
    return paired_test(left, right, confidence)


def _pass_at(values: Sequence[Sequence[float]], k: int) -> dict[str, float]:
    sizes = [2**i for i in range(k.bit_length())]
    return {
        str(size): fmean(pass_at_k(k, round(sum(group)), size) for group in values)
        for size in sizes
    }


def _by_subject(questions: Sequence[Question], means: Mapping[str, float]) -> dict[str, float]:
    """Nothing where there is one subject alone."""
    groups: dict[str, list[float]] = {}
    for question in questions:
        if question.id in means:
            groups.setdefault(question.subject, []).append(means[question.id])
    return {name: fmean(group) for name, group in sorted(groups.items())} if len(groups) > 1 else {}
