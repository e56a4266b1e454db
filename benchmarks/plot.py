"""Draws time and memory of the loss against the number of rows T, from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import head, scaling
from benchmarks.record import ROOT

FILE = ROOT / "docs" / "head-time-memory"
INK = "#7d8590"  # reads on a white and on a dark page
COLOURS = ("#3b82f6", "#d97706", "#059669", "#a855f7", "#dc2626", "#0891b2", "#92762b", "#db2777")
GAP = 0.055  # of the height, between the labels at the right


def draw(records: Sequence[dict[str, Any]], file: Path = FILE) -> list[Path]:
    """Draw the newest device's scaling records, as PNG and SVG; give the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = [r for r in records if r["case"].startswith(scaling.PREFIX) and r["seconds"]]
    if not there:
        raise SystemExit("no records of `python -m benchmarks scaling` to draw")
    device = max(there, key=lambda r: r["date"])["device"]
    there = sorted((r for r in there if r["device"] == device), key=lambda r: r["shape"][0])
    names = list(dict.fromkeys(r["implementation"] for r in there))
    names.sort(key=lambda name: name != head.WE)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    panels = (("time, ms", "seconds", 1e3), ("extra peak memory, MiB", "peak", 2.0**-20))
    for axis, (title, key, unit) in zip(axes, panels, strict=True):
        ends = {}
        for name, colour in zip(names, COLOURS, strict=False):
            points = [(r["shape"][0], r[key] * unit) for r in there
                      if r["implementation"] == name and r[key]]  # fmt: skip
            if points:
                _line(axis, points, colour, ours=name == head.WE)
                ends[name] = (points[-1], colour)
        _axes(axis, title, sorted({r["shape"][0] for r in there}))
        _labels(axis, ends)
    _, width, columns = there[-1]["shape"]
    figure.suptitle(
        f"Clipped loss, forward + backward, bf16, H {width} × V {columns}, {device}",
        color=INK, fontsize=9,
    )  # fmt: skip
    file.parent.mkdir(exist_ok=True)
    files = [file.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in files:
        figure.savefig(path, dpi=160, transparent=True)
    plt.close(figure)
    return files


def _line(axis: Any, points: list[tuple[float, float]], colour: str, ours: bool) -> None:
    axis.plot(
        *zip(*points, strict=True), color=colour, marker="o", markersize=5 if ours else 3.5,
        linewidth=2.6 if ours else 1.3, zorder=3 if ours else 2,
    )  # fmt: skip


def _axes(axis: Any, title: str, steps: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    axis.set(xscale="log", yscale="log", xlabel="rows T")
    axis.set_title(title, color=INK, fontsize=11, loc="left")
    axis.set_xticks(steps, map(str, steps))
    axis.minorticks_off()
    axis.set_xlim(steps[0] * 0.85, steps[-1] * 2.6)  # room for the labels
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.tick_params(colors=INK, labelsize=9)
    axis.xaxis.label.set_color(INK)
    axis.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _labels(axis: Any, ends: dict[str, tuple[tuple[float, float], str]]) -> None:
    """Each name at the end of its line: to the right of the last T, above the point elsewhere."""
    last = max(x for (x, _), _ in ends.values())
    to_axes = axis.transData + axis.transAxes.inverted()
    floor = -1.0
    for name, (point, colour) in sorted(ends.items(), key=lambda item: item[1][0][1]):
        style = {"color": colour, "fontsize": 9, "transform": axis.transAxes}
        if name == head.WE:
            style["fontweight"] = "bold"
        x, y = to_axes.transform(point)
        if point[0] < last:
            axis.text(x, y + 0.02, name, ha="center", va="bottom", **style)
        else:  # two that end together are kept apart
            floor = max(y, floor + GAP)
            axis.text(x + 0.02, floor, name, va="center", **style)
