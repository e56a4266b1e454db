"""Curves of runs of r1train side by side: ``python -m benchmarks.convergence RUN_FOLDER …``.

Made for one recipe and seed in two precisions: ``r1train run r1-zero-mini precision=fp8``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.plot import COLOURS, FOLDER, INK

FILE = "fp8-convergence.png"
PANELS = (("sft", "loss", "supervised loss"), ("grpo", "reward", "GRPO, mean reward"))


def curve(folder: Path, stage: str, metric: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric in one stage of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("stage") == stage and metric in row]
    return [row["step"] for row in rows], [row[metric] for row in rows]


def draw(folders: list[Path], target: Path = FOLDER) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.6, 3.6), layout="constrained")
    for axis, (stage, metric, title) in zip(axes, PANELS, strict=True):
        for folder, colour in zip(folders, COLOURS, strict=False):
            axis.plot(*curve(folder, stage, metric), color=colour, label=folder.name, linewidth=1.4)
        axis.set_title(title, color=INK, fontsize=10, loc="left")
        axis.set_xlabel("step", color=INK)
        axis.tick_params(colors=INK, labelsize=9)
        axis.grid(color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
    for text in axes[0].legend(frameon=False).get_texts():
        text.set_color(INK)
    target.mkdir(exist_ok=True)
    figure.savefig(target / FILE, dpi=160, transparent=True)
    plt.close(figure)
    return target / FILE


if __name__ == "__main__":
    print(draw([Path(name) for name in sys.argv[1:]]))
