"""Draws TFLOP/s against arithmetic intensity under this device's measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plot import COLOURS, FOLDER, INK, Record
from benchmarks.whole import NAME, WE

TASK = NAME["linear"]
FILE = "fp8-roofline"


def ceilings(records: Sequence[Record]) -> tuple[float, float]:
    """(TFLOP/s, GB/s) at best: ``roofline`` is a share of the one or of the other."""
    return (
        max(record["tflops"] / record["roofline"] for record in records),
        max(record["gbps"] / record["roofline"] for record in records),
    )


def draw(records: Sequence[Record], folder: Path = FOLDER) -> list[Path]:
    """The FP8 linear layers of the newest device, as PNG and SVG; gives the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = [r for r in records if r["op"] == TASK and r["seconds"]]
    if not there:
        return []
    device = max(there, key=lambda record: record["date"])["device"]
    there = [record for record in there if record["device"] == device]
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    names = sorted({r["implementation"] for r in there}, key=lambda name: (name != WE, name))
    for name, colour in zip(names, COLOURS, strict=False):
        points = sorted(
            (1e3 * r["tflops"] / r["gbps"], r["tflops"])
            for r in there
            if r["implementation"] == name
        )
        ours = name == WE
        axis.plot(
            *zip(*points, strict=True), color=colour, label=name, marker="o", linestyle="",
            markersize=7 if ours else 5, zorder=3 if ours else 2,
        )  # fmt: skip
    _ceiling(axis, *ceilings(there), [1e3 * r["tflops"] / r["gbps"] for r in there])
    _style(axis)
    title = f"FP8 linear layers, quantizing included, {device}"
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    folder.mkdir(exist_ok=True)
    files = [folder / f"{FILE}{suffix}" for suffix in (".png", ".svg")]
    for path in files:
        figure.savefig(path, dpi=160, transparent=True)
    plt.close(figure)
    return files


def _ceiling(axis: Any, tflops: float, gbps: float, intensities: list[float]) -> None:
    knee = 1e3 * tflops / gbps
    least, most = min(*intensities, knee) / 2, max(*intensities, knee) * 2
    corners = [(least, least * gbps / 1e3), (knee, tflops), (most, tflops)]
    axis.plot(*zip(*corners, strict=True), color=INK, linewidth=1.2, zorder=1)
    style = {"color": INK, "fontsize": 8}
    below = least * 1.1 * gbps / 1e3 * 0.85
    axis.text(least * 1.1, below, f"copy, {gbps:.3g} GB/s", va="top", **style)
    label = f"matrix product, {tflops:.3g} TFLOP/s"
    axis.text(most, tflops * 1.03, label, ha="right", va="bottom", **style)


def _style(axis: Any) -> None:
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.tick_params(which="both", colors=INK, labelsize=9)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    axis.grid(color=INK, alpha=0.25, linewidth=0.6)
    legend = axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_color(INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
