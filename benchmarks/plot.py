"""Draws how time and memory grow, from the records: one figure for the head, one for experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import moe, scaling, whole
from benchmarks.record import ROOT

FOLDER = ROOT / "docs"
INK = "#7d8590"  # reads on a white and on a dark page
COLOURS = ("#3b82f6", "#d97706", "#059669", "#a855f7", "#dc2626", "#0891b2", "#92762b", "#db2777")
GAP = 0.055  # of the height, between the labels at the right

Record = dict[str, Any]


class Panel(NamedTuple):
    """``field`` times ``unit`` against shape[``axis``], of the cases of ``task`` so called."""

    title: str
    label: str
    task: str
    prefix: str
    axis: int = 0
    field: str = "seconds"
    unit: float = 1e3


class Drawing(NamedTuple):
    file: str
    title: str
    panels: tuple[Panel, ...]


HEAD, EXPERTS, ROUTE = (whole.NAME[kind] for kind in ("grpo", "experts", "route"))
DRAWINGS = (
    Drawing(
        "head-time-memory",
        "Clipped loss, forward + backward, bf16, H {1} × V {2}, {device}",
        (
            Panel("time, ms", "rows T", HEAD, scaling.PREFIX),
            Panel(
                "extra peak memory, MiB", "rows T", HEAD, scaling.PREFIX,
                field="peak", unit=2.0**-20,
            ),
        ),
    ),
    Drawing(
        "moe-time",
        "Mixture of experts, k {2}, H {3}, I {4}, {device}",
        (
            Panel("experts, forward + backward, ms", "tokens T", EXPERTS, moe.T_PREFIX),
            Panel("the same, T 1024", "experts E", EXPERTS, moe.E_PREFIX, axis=1),
            Panel("router, T 1024, ms", "experts E", ROUTE, moe.E_PREFIX, axis=1),
        ),
    ),
)  # fmt: skip


def draw(records: Sequence[Record], folder: Path = FOLDER) -> list[Path]:
    """Draw the newest device's records of growth, as PNG and SVG; give the files."""
    import matplotlib

    matplotlib.use("Agg")
    files = [file for drawing in DRAWINGS for file in _draw(drawing, records, folder)]
    if not files:
        raise SystemExit("no records of `python -m benchmarks scaling` or `moe` to draw")
    return files


def _draw(drawing: Drawing, records: Sequence[Record], folder: Path) -> list[Path]:
    from matplotlib import pyplot as plt

    there = [record for panel in drawing.panels for record in _of(panel, records)]
    if not there:
        return []
    newest = max(there, key=lambda record: record["date"])
    there = [record for record in there if record["device"] == newest["device"]]
    about = next((r for r in there if r["op"] == drawing.panels[0].task), None)
    if about is None:
        return []
    names = list(dict.fromkeys(record["implementation"] for record in there))
    names.sort(key=lambda name: name != whole.WE)
    count = len(drawing.panels)
    figure, axes = plt.subplots(1, count, figsize=(4.8 * count, 4.2), layout="constrained")
    for axis, panel in zip(axes, drawing.panels, strict=True):
        mine = sorted(_of(panel, there), key=lambda record: record["shape"][panel.axis])
        ends = {}
        for name, colour in zip(names, COLOURS, strict=False):
            points = [
                (record["shape"][panel.axis], record[panel.field] * panel.unit)
                for record in mine
                if record["implementation"] == name and record[panel.field]
            ]
            if points:
                _line(axis, points, colour, ours=name == whole.WE)
                ends[name] = (points[-1], colour)
        if ends:
            _axes(axis, panel, sorted({record["shape"][panel.axis] for record in mine}))
            _labels(axis, ends)
    title = drawing.title.format(*about["shape"], device=about["device"])
    figure.suptitle(title, color=INK, fontsize=9)
    folder.mkdir(exist_ok=True)
    files = [folder / f"{drawing.file}{suffix}" for suffix in (".png", ".svg")]
    for path in files:
        figure.savefig(path, dpi=160, transparent=True)
    plt.close(figure)
    return files


def _of(panel: Panel, records: Sequence[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record["op"] == panel.task
        and record["case"].startswith(panel.prefix)
        and record["seconds"]
    ]


def _line(axis: Any, points: list[tuple[float, float]], colour: str, ours: bool) -> None:
    axis.plot(
        *zip(*points, strict=True), color=colour, marker="o", markersize=5 if ours else 3.5,
        linewidth=2.6 if ours else 1.3, zorder=3 if ours else 2,
    )  # fmt: skip


def _axes(axis: Any, panel: Panel, steps: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    axis.set(xscale="log", yscale="log", xlabel=panel.label)
    axis.set_title(panel.title, color=INK, fontsize=11, loc="left")
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
        if name == whole.WE:
            style["fontweight"] = "bold"
        x, y = to_axes.transform(point)
        if point[0] < last:
            axis.text(x, y + 0.02, name, ha="center", va="bottom", **style)
        else:  # two that end together are kept apart
            floor = max(y, floor + GAP)
            axis.text(x + 0.02, floor, name, va="center", **style)
