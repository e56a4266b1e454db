"""Figures of a recipe: held-out accuracy by stage, and what each stage logs, seed by seed."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from r1train.report.plots import INK, STYLE
from r1train.report.records import StageRecords, StudyRecords, number

GRID = "#e2e8f0"
COLORS = ("#2563eb", "#ea580c", "#059669", "#7c3aed", "#db2777", "#0891b2")
PANELS = (  # title, figures, whether they are shares
    ("rewards", ("rewards/*",), False),
    ("loss", ("loss",), False),
    ("accuracy", ("accuracy",), True),
    ("KL to the reference, nats", ("kl",), False),
    ("completion length, tokens", ("completions/mean_length",), False),
    ("entropy, nats", ("entropy",), False),
)
ACCURACY = (
    (r"eval/cons@\d+", COLORS[1], "D", "majority vote"),
    (r"eval/pass@1", COLORS[0], "o", "pass@1"),
)
MOST = 3
"""Panels of a stage: the first that have data."""


@dataclass(frozen=True)
class Drawing:
    """A figure, as a page shows it and as a file."""

    title: str
    name: str
    svg: str
    """Of the page's own colors and fonts."""
    width: float
    """Of the SVG, in inches."""
    png: bytes


def drawings(study: StudyRecords) -> list[Drawing]:
    """Held-out accuracy first, then a figure for each stage that has logged steps."""
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "r1train"}):
        found = [heldout(study)]
        found += [curves(name, stages) for name, stages in study.stages.items()]
        return [drawing for drawing in found if drawing is not None]


def heldout(study: StudyRecords) -> Drawing | None:
    """pass@1 and cons@k after each stage: a dot for each seed, and their mean."""
    rows = {
        name: last
        for name, stages in study.stages.items()
        if (last := [stage.evaluations[-1] for stage in stages if stage.evaluations])
    }
    rows = {
        name: last
        for name, last in rows.items()
        if any(number(record.get("eval/pass@1")) is not None for record in last)
    }
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 1 + 0.3 * len(rows)), layout="constrained")
    for place, last in enumerate(rows.values()):
        for key, color, marker, label in ACCURACY:
            found = [record[name] for record in last for name in record if re.fullmatch(key, name)]
            values = [value for one in found if (value := number(one)) is not None]
            if values:
                style: dict[str, Any] = {"marker": marker, "color": color, "linestyle": ""}
                axes.plot(values, [place] * len(values), alpha=0.35, markersize=4, **style)
                axes.plot(
                    *(fmean(values), place),
                    markersize=7,
                    label=label if place == 0 else None,
                    **style,
                )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.08), ncols=2)
    return _drawn(figure, "Held-out accuracy by stage", "heldout")


def curves(name: str, stages: Sequence[StageRecords]) -> Drawing | None:
    """What the steps of a stage have logged; one line for each seed."""
    present = [
        (title, keys, share)
        for title, patterns, share in PANELS
        if (keys := _keys(stages, patterns))
    ]
    if present and present[0][0] == "rewards":  # the loss of a policy gradient says nothing
        present = [panel for panel in present if panel[0] != "loss"]
    present = present[:MOST]
    if not present:
        return None
    figure, grid = plt.subplots(
        1, len(present), figsize=(3.3 * len(present), 2.6), layout="constrained", squeeze=False
    )
    to_teacher = any(stage.kind == "on_policy_distill" for stage in stages)
    for axes, (title, keys, share) in zip(grid[0], present, strict=True):
        for color, key in zip(COLORS, keys, strict=False):
            _lines(axes, stages, key, color, len(keys) > 1)
        axes.set_title(title.replace("reference", "teacher") if to_teacher else title)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(present[0][1]) > 1:
        figure.legend(loc="outside lower left", fontsize=8, ncols=2 * len(present))
    return _drawn(figure, name, f"stage-{name}")


def _lines(axes: Axes, stages: Sequence[StageRecords], key: str, color: str, several: bool) -> None:
    for seed, stage in enumerate(stages):
        known = ((record["step"], number(record.get(key))) for record in stage.steps)
        points = [(step, value) for step, value in known if value is not None]
        if points:
            label = key.rpartition("/")[2] if several and seed == 0 else None
            x, y = zip(*points, strict=True)
            window = max(1, len(y) // 15)
            smooth = [fmean(y[max(0, i - window) : i + 1]) for i in range(len(y))]
            alpha, marker = 1 if seed == 0 else 0.45, "o" if len(x) == 1 else ""
            axes.plot(x, smooth, color=color, alpha=alpha, marker=marker, label=label)


def _keys(stages: Sequence[StageRecords], patterns: Sequence[str]) -> list[str]:
    present = {
        key: None
        for stage in stages
        for record in stage.steps
        for key, value in record.items()
        if number(value) is not None
    }
    return [
        key
        for pattern in patterns
        for key in present
        if re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]+"), key)
    ]


def _drawn(figure: Figure, title: str, name: str) -> Drawing:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    width = figure.get_figwidth()
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)  # as wide as the page lets it
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # a page has several figures
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in ((INK, "ink"), (GRID, "line"), ("#000000", "ink")):
        svg = svg.replace(color, f"var(--{variable})")
    return Drawing(title, name, svg, width, png.getvalue())
