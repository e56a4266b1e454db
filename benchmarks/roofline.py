"""Draws TFLOP/s against arithmetic intensity under each device's measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plot import (
    COLOURS,
    FOLDER,
    INK,
    MARKERS,
    Record,
    by_device,
    new_figure,
    save,
    style,
)
from benchmarks.table import significant
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
    """The FP8 linear layers of each device, as PNG; gives the files."""
    there = [record for record in records if record["op"] == TASK and record["seconds"]]
    return [_draw(mine, device, folder) for device, mine in by_device(there).items()]


def _draw(records: Sequence[Record], device: str, folder: Path) -> Path:
    figure, ((axis,),) = new_figure(size=(7.2, 4.4))
    names = sorted({r["implementation"] for r in records}, key=lambda name: (name != WE, name))
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        points = sorted(
            (1e3 * r["tflops"] / r["gbps"], r["tflops"])
            for r in records
            if r["implementation"] == name
        )
        ours = name == WE
        axis.plot(
            *zip(*points, strict=True), color=colour, label=name, marker=marker, linestyle="",
            markersize=7 if ours else 5, zorder=3 if ours else 2,
        )  # fmt: skip
    _ceiling(axis, *ceilings(records), [1e3 * r["tflops"] / r["gbps"] for r in records])
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    style(axis)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
    title = f"FP8 linear layers, quantizing included, {device}"
    axis.set_title(title, color=INK, fontsize=10, loc="left")
    return save(figure, FILE, device, folder)


def _ceiling(axis: Any, tflops: float, gbps: float, intensities: list[float]) -> None:
    """The two limits as one line, named in the legend: text at the line would meet the points."""
    knee = 1e3 * tflops / gbps
    least, most = min(*intensities, knee) / 2, max(*intensities, knee) * 2
    corners = [(least, least * gbps / 1e3), (knee, tflops), (most, tflops)]
    limits = f"copy {significant(gbps)} GB/s,\nproduct {significant(tflops)} TFLOP/s"
    axis.plot(
        *zip(*corners, strict=True),
        color=INK,
        linewidth=1.2,
        zorder=1,
        label=f"measured:\n{limits}",
    )
