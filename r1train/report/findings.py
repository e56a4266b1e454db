"""What a recipe was expected to show, against what its seeds have shown.

The difference of two figures is taken in every seed. Its interval is Student's t over seeds. A few
seeds may agree by chance, and may share their problems: so it is never narrower than the problems
of all seeds have it, where both stages were asked the same. With few seeds it is wide: so a
difference is also taken for shown where it is in every seed by itself, over its problems. One seed
decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

from r1train.config.findings import FindingConfig
from r1train.report.evaluation import Interval

_ROUNDING = 1e-9
"""Of figures, relative to 1 or to what is larger."""
Verdict = Literal["reproduced", "not reproduced", "not decided"]
RULE = (
    "Reproduced: the interval over the seeds lies above 0 (above at_least, where a finding has "
    "one), or in every seed by itself that over its problems does, and then the interval shown "
    "may hold 0. Not reproduced: one or the other lies at or below it. Else, and with one seed, "
    "not decided."
)
"""How verdicts are come to, for those who read them."""


@dataclass(frozen=True)
class Measured:
    """A figure of a stage in one seed."""

    value: float
    """NaN or infinite where there is none."""
    per_problem: Mapping[str, float] = field(default_factory=dict)
    """Its parts by the problem, where it is a mean over problems."""


@dataclass(frozen=True)
class Finding:
    """One comparison over the seeds."""

    title: str
    paper: str
    left: str
    right: str
    scale: str
    values: list[tuple[float, float]]
    """The two figures of each seed that has both."""
    seeds: int
    """That were asked for both."""
    difference: float
    """Mean over seeds of the left figure less the right one."""
    interval: Interval
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "paper": self.paper,
            "left": self.left,
            "right": self.right,
            "scale": self.scale,
            "values": [list(pair) for pair in self.values],
            "seeds": self.seeds,
            "difference": None if isnan(self.difference) else self.difference,
            "interval": [None if isnan(end) or abs(end) == inf else end for end in self.interval],
            "verdict": self.verdict,
        }


def compare(
    expected: FindingConfig,
    pairs: Sequence[tuple[Measured, Measured]],
    confidence: float = 0.95,
) -> Finding:
    """What these pairs, one for each seed, show of what is expected."""
    known = [pair for pair in pairs if isfinite(pair[0].value - pair[1].value)]
    apart = [left.value - right.value for left, right in known]
    interval = _over_seeds(apart, known, confidence)
    return Finding(
        title=expected.title,
        paper=expected.paper,
        left=expected.left,
        right=expected.right,
        scale=expected.scale,
        values=[(left.value, right.value) for left, right in known],
        seeds=len(pairs),
        difference=fmean(apart) if apart else nan,
        interval=interval,
        verdict=_verdict(
            [interval],
            [_over_problems(*pair, confidence) for pair in known],
            expected.at_least,
        ),
    )


def _verdict(
    over_seeds: Sequence[Interval], by_seed: Sequence[Interval], at_least: float
) -> Verdict:
    if len(by_seed) < 2:  # one seed decides nothing
        return "not decided"
    for intervals in (over_seeds, by_seed):
        if all(low > at_least for low, _ in intervals):
            return "reproduced"
        if all(high <= at_least for _, high in intervals):
            return "not reproduced"
    return "not decided"


def _over_seeds(
    apart: Sequence[float], known: Sequence[tuple[Measured, Measured]], confidence: float
) -> Interval:
    """Student's interval of the mean, or that over the problems of all seeds where it is wider.

    A problem adds what it does in all seeds that were asked it, for those are not independent.
    """
    interval = t_interval(apart, confidence)
    if len(apart) < 2:
        return interval
    added: dict[str, float] = {}
    for left, right in known:
        differences = _by_problem(left, right)
        for key, value in differences.items():
            added[key] = added.get(key, 0.0) + value / (len(differences) * len(known))
        if not differences:
            return interval
    each = [value * len(added) for value in added.values()]
    of_problems = _around(each, NormalDist().inv_cdf((1 + confidence) / 2))
    known_ones = [one for one in (interval, of_problems) if one[1] < inf]
    return max(known_ones, key=lambda one: one[1] - one[0], default=interval)


def _over_problems(left: Measured, right: Measured, confidence: float) -> Interval:
    """Of the difference in one seed."""
    apart = list(_by_problem(left, right).values())
    return _around(apart, NormalDist().inv_cdf((1 + confidence) / 2))


def _by_problem(left: Measured, right: Measured) -> dict[str, float]:
    """Differences, where both sides have the same problems."""
    if left.per_problem.keys() != right.per_problem.keys():
        return {}
    return {key: value - right.per_problem[key] for key, value in left.per_problem.items()}


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean."""
    if len(values) < 2:
        return -inf, inf
    return _around(values, t_quantile((1 + confidence) / 2, len(values) - 1))


def _around(values: Sequence[float], quantile: float) -> Interval:
    """So many standard errors around the mean; without an end where values that are all equal, or
    a single one, do not say how far they scatter. Equal is what differs by rounding alone."""
    if len(values) < 2 or _apart(values) <= _ROUNDING:
        return -inf, inf
    half = quantile * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _apart(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / max(1.0, *map(abs, values))


def t_quantile(probability: float, degrees: int) -> float:
    """Of Student's distribution, for a probability of at least one half."""
    from mpmath import betainc

    low, high = 0.0, 1e6
    while high - low > 1e-9 * (1 + low):
        middle = (low + high) / 2
        tail = betainc(degrees / 2, 0.5, 0, degrees / (degrees + middle**2), regularized=True) / 2
        if 1 - tail < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def markdown(findings: Sequence[Finding]) -> str:
    """A table with a row for each, and the rule of verdicts."""
    rows = [
        "| finding | paper | figures by seed | difference | |",
        "|---|---|---|---:|---|",
    ]
    for one in findings:
        rows.append(
            f"| {one.title} | {one.paper} | {by_seed(one.values, one.scale)} | {difference(one)} | "
            f"**{one.verdict}** |"
        )
    return "\n".join([*rows, "", RULE]) + "\n"


def by_seed(values: Sequence[Sequence[float]], scale: str) -> str:
    """The two figures of each seed; a dash where none has both."""
    return ", ".join(f"{_shown(a, scale)} / {_shown(b, scale)}" for a, b in values) or "–"


def difference(one: Finding) -> str:
    """With its interval over seeds, where there is one."""
    if isnan(one.difference):
        return "–"
    text, (low, high) = _shown(one.difference, one.scale, sign=True), one.interval
    if len(one.values) < one.seeds:
        text = f"{len(one.values)} of {one.seeds} seeds: {text}"
    if low == -inf:
        return text
    return f"{text} ({_shown(low, one.scale, sign=True)} to {_shown(high, one.scale, sign=True)})"


def _shown(value: float, scale: str, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} %" if scale == "share" else f"{value:{plus}.3g}"
