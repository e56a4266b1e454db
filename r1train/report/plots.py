"""PNG plots of metrics.jsonl: the reward and held-out accuracy, and a grid of everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Record = dict[str, Any]
INK = "#0f172a"

STYLE: dict[Any, Any] = {
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=["#2563eb", "#ea580c", "#059669", "#7c3aed", "#64748b"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",  # also on a dark page
}


class Points(NamedTuple):
    x: list[float]
    y: list[Any]


class Panel(NamedTuple):
    """One chart of the grid. A * in a key stands for one part of a metric's name."""

    title: str
    keys: tuple[str, ...]
    stage: str = "grpo"
    percent: bool = False
    log: bool = False


PANELS = (
    Panel("supervised loss", ("loss",), stage="sft"),
    Panel("completion length, tokens", ("completions/mean_length",)),
    Panel("truncated completions", ("completions/clipped_ratio",), percent=True),
    Panel("entropy, nats", ("entropy",)),
    Panel("KL to the reference, nats", ("kl",)),
    Panel("clipped ratios", ("clip_fraction",), percent=True),
    Panel("constant groups", ("frac_reward_zero_std",), percent=True),
    Panel("|Δlogp| sampler to trainer", ("sampling_delta_mean", "sampling_delta_max"), log=True),
    Panel("other experts than the sampler's", ("routing/differing",), percent=True),
    Panel("expert load off the mean", ("expert_load/*",), percent=True),
    Panel("gradient norm", ("grad_norm",)),
    Panel("learning rate", ("learning_rate",)),
    Panel("failures of rewards", ("rewards/*/errors", "rewards/*/timeouts")),
    Panel("rewards that do not apply", ("rewards/*/none",), percent=True),
    Panel("seconds by phase", ("seconds/*",)),
    Panel("tokens a second", ("tokens_per_second",)),
    Panel("peak memory, GiB", ("peak_memory_gib",)),
)


def plot_reward(records: Sequence[Record], path: Path) -> Path | None:
    """Reward by function and held-out accuracy by GRPO step; None where there is neither.

    Functions that leave [0, 1] have a chart of their own below.
    """
    grpo = [record for record in records if record["stage"] == "grpo"]
    names, heldout = _names(grpo, ("rewards/*",)), _points(grpo, "eval/pass@1")
    if not names and not heldout.x:
        return None
    curves = {name: _points(grpo, name) for name in names}
    wide = {name for name, points in curves.items() if not all(0 <= y <= 1 for y in points.y)}
    rows = 2 if wide else 1
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, figsize=(7, 1.2 + 2.6 * rows), layout="constrained", squeeze=False, sharex=True
        )
        axes, last = grid[0, 0], grid[-1, 0]
        for color, (name, points) in enumerate(curves.items()):
            label = f"{name.removeprefix('rewards/')} reward, training"
            _curve(last if name in wide else axes, points, label, f"C{color}")
        if heldout.x:
            intervals = _points(grpo, "eval/pass@1_ci")
            low, high = zip(*intervals.y, strict=True) if intervals.y else ((), ())
            axes.fill_between(intervals.x, low, high, color=INK, alpha=0.12, linewidth=0)
            label = f"held-out pass@1, {heldout.y[0]:.0%} → {heldout.y[-1]:.0%}"
            axes.plot(heldout.x, heldout.y, "o-", color=INK, markersize=4, label=label)
        axes.set(ylim=(0, 1.03), title="Reward and held-out accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        last.set_xlabel("GRPO step")
        figure.legend(loc="outside lower center", ncols=3)  # no text among the curves
        return _save(figure, path)


def plot_training(records: Sequence[Record], path: Path) -> Path | None:
    """A grid of the panels that have data; None where none has."""
    stages = {stage: [r for r in records if r["stage"] == stage] for stage in ("sft", "grpo")}
    found = [(panel, _names(stages[panel.stage], panel.keys)) for panel in PANELS]
    found = [(panel, names) for panel, names in found if names]
    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.6 * columns, 2.3 * rows), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for axes, (panel, names) in zip(grid.flat, found, strict=False):
            for name in names:
                _curve(axes, _points(stages[panel.stage], name), _label(name))
            axes.set_title(panel.title)
            if panel.percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            if panel.log:
                axes.set_yscale("log", nonpositive="mask")
            else:
                axes.set_ylim(*_limits(axes))
            if len(names) > 1:
                axes.legend(fontsize=8)
        figure.supxlabel("step of the stage", fontsize=9, color="#64748b")
        return _save(figure, path)


def _names(records: Sequence[Record], keys: Sequence[str]) -> list[str]:
    """Metrics that `keys` stand for and that are not 0 throughout, in the order of `keys`."""
    present = {name: None for record in records for name in record if record[name]}
    return [name for key in keys for name in present if _stands_for(key, name)]


def _stands_for(key: str, name: str) -> bool:
    parts, wanted = name.split("/"), key.split("/")
    return len(parts) == len(wanted) and all(
        part == want or want == "*" for part, want in zip(parts, wanted, strict=True)
    )


def _label(name: str) -> str:
    """What tells the curves of a panel apart."""
    if name.startswith("rewards/"):
        return name.removeprefix("rewards/").replace("/", ", ")
    return re.split("[/_]", name)[-1]


def _points(records: Sequence[Record], name: str) -> Points:
    kept = [record for record in records if record.get(name) is not None]
    return Points([record["step"] for record in kept], [record[name] for record in kept])


def _curve(axes: Axes, points: Points, label: str, color: str | None = None) -> None:
    """The raw values, faint where there are many, and their running mean."""
    window = max(1, len(points.x) // 20)
    around = [slice(max(0, i - window // 2), i + window // 2 + 1) for i in range(len(points.y))]
    smooth = [fmean(points.y[near]) for near in around]
    marker = "o" if len(points.x) == 1 else None
    (line,) = axes.plot(points.x, smooth, label=label, color=color, marker=marker, markersize=4)
    if window > 1:
        axes.plot(points.x, points.y, color=line.get_color(), alpha=0.2, linewidth=0.8, zorder=1)


def _limits(axes: Axes) -> tuple[float, float]:
    """From 0, which nothing plotted here is meant to cross, unless it does."""
    low, high = axes.get_ylim()
    low = min(low, 0.0) if axes.dataLim.y0 < 0 else 0.0
    return low, high if high > low else 1.0


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    plt.close(figure)
    return path
