"""Draws how time and memory grow, from the records: for each device the head, and the experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import moe, scaling, whole
from benchmarks.record import ROOT, slug

FOLDER = ROOT / "docs" / "figures"
INK = "#334155"
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#854d0e", "#db2777")
MARKERS = "osD^vPX*"

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
    """A PNG for each drawing and device that has records of growth; gives the files."""
    files = [
        file
        for mine in by_device(records).values()
        for drawing in DRAWINGS
        for file in _draw(drawing, mine, folder)
    ]
    if not files:
        raise SystemExit("no records of `python -m benchmarks scaling` or `moe` to draw")
    return files


def by_device(records: Sequence[Record]) -> dict[str, list[Record]]:
    devices = sorted({record["device"] for record in records})
    return {name: [record for record in records if record["device"] == name] for name in devices}


def save(figure: Any, name: str, device: str, folder: Path) -> Path:
    """As PNG, on white whatever page it will stand on: ink and lines are made for that."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{slug(device)}.png"
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)
    return path


def new_figure(*shape: int, size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)


def _draw(drawing: Drawing, records: Sequence[Record], folder: Path) -> Iterator[Path]:
    panels = [panel for panel in drawing.panels if len(_steps(panel, records)) > 1]
    there = [record for panel in panels for record in _of(panel, records)]
    if not there:
        return
    about = next(r for r in there if r["op"] == drawing.panels[0].task)
    names = list(dict.fromkeys(record["implementation"] for record in there))
    names.sort(key=lambda name: name != whole.WE)
    figure, (axes,) = new_figure(1, len(panels), size=(max(3.4 * len(panels), 5), 3.9))
    for axis, panel in zip(axes, panels, strict=True):
        mine = sorted(_of(panel, there), key=lambda record: record["shape"][panel.axis])
        for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
            points = [
                (record["shape"][panel.axis], record[panel.field] * panel.unit)
                for record in mine
                if record["implementation"] == name and record[panel.field]
            ]
            if points:
                _line(axis, points, name, colour, marker)
        _axes(axis, panel, _steps(panel, mine))
    found = {}  # a name may be missing from some panels
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        [found[name] for name in names if name in found], [name for name in names if name in found],
        loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    title = drawing.title.format(*about["shape"], device=about["device"])
    figure.suptitle(title, color=INK, fontsize=9)
    yield save(figure, drawing.file, about["device"], folder)


def _steps(panel: Panel, records: Sequence[Record]) -> list[int]:
    return sorted({record["shape"][panel.axis] for record in _of(panel, records)})


def _of(panel: Panel, records: Sequence[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record["op"] == panel.task
        and record["case"].startswith(panel.prefix)
        and record["seconds"]
    ]


def _line(
    axis: Any, points: list[tuple[float, float]], name: str, colour: str, marker: str
) -> None:
    ours = name == whole.WE
    axis.plot(
        *zip(*points, strict=True), label=name, color=colour, marker=marker,
        markersize=6 if ours else 4.5, linewidth=2.6 if ours else 1.3, zorder=3 if ours else 2,
    )  # fmt: skip


def _axes(axis: Any, panel: Panel, steps: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    axis.set(xscale="log", yscale="log", xlabel=panel.label)
    axis.set_title(panel.title, color=INK, fontsize=11, loc="left")
    axis.set_xticks(steps, map(str, steps))
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    style(axis)


def style(axis: Any) -> None:
    axis.tick_params(which="both", colors=INK, labelsize=9)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    axis.grid(color=INK, alpha=0.2, linewidth=0.6)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
