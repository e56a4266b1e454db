"""Curves of runs of r1train side by side: ``python -m benchmarks.convergence RUN_FOLDER …``.

Made for one recipe and seed in two precisions, one of them that of ``r1train run r1-zero-mini
precision=fp8 fp8_layers=all``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.plot import COLOURS, FOLDER, INK, new_figure, style

FILE = "fp8-convergence.png"
PANELS = (("sft", "loss", "supervised loss"), ("grpo", "reward", "GRPO, mean reward"))


def curve(folder: Path, stage: str, metric: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric in one stage of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("stage") == stage and metric in row]
    return [row["step"] for row in rows], [row[metric] for row in rows]


def draw(folders: list[Path], target: Path = FOLDER) -> Path:
    figure, (axes,) = new_figure(1, len(PANELS), size=(10.4, 3.6))
    for axis, (stage, metric, title) in zip(axes, PANELS, strict=True):
        for folder, colour in zip(folders, COLOURS, strict=False):
            axis.plot(*curve(folder, stage, metric), color=colour, label=folder.name, linewidth=1.2)
        axis.set_title(title, color=INK, fontsize=10, loc="left")
        axis.set_xlabel("step")
        style(axis)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, labelcolor=INK)
    target.mkdir(parents=True, exist_ok=True)
    figure.savefig(target / FILE, dpi=150, facecolor="white")
    return target / FILE


if __name__ == "__main__":
    print(draw([Path(name) for name in sys.argv[1:]]))
