"""The run folder: everything a run leaves behind, readable at any moment of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1train.config import Config
from r1train.toml import to_toml


class RunFolder:
    """A folder with config.toml, metrics.jsonl, samples.jsonl, summary.json and PNG plots.

    A line is on the disk when `log` returns: a run that is interrupted leaves a usable folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """A new folder `output_dir/name`, or `name-2` and so on: no run overwrites another."""
        number, path = 1, Path(config.output_dir) / config.name
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = path.with_name(f"{config.name}-{number}")
        (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
        return cls(path)

    def log(self, step: int, metrics: Mapping[str, float], stage: str = "grpo") -> None:
        """Append one line to metrics.jsonl; figures that are not finite become null."""
        self._append("metrics.jsonl", [{"step": step, "stage": stage, **metrics}])

    def log_samples(
        self, step: int, samples: Iterable[Mapping[str, Any]], stage: str = "grpo"
    ) -> None:
        """Append completions with their prompts and rewards to samples.jsonl."""
        lines = [{"step": step, "stage": stage, **sample} for sample in samples]
        self._append("samples.jsonl", lines)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Replace summary.json as a whole: a reader never sees half of it."""
        path = self.path / "summary.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(_finite(summary), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def plot(self) -> list[Path]:
        """Draw what metrics.jsonl holds: reward.png and training.png, each if it has data."""
        from r1train.plots import plot_reward, plot_training  # matplotlib is slow to import

        drawn = [plot_reward(self.metrics(), self.path / "reward.png")]
        drawn.append(plot_training(self.metrics(), self.path / "training.png"))
        return [path for path in drawn if path is not None]

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records]
        with open(self.path / name, "a", encoding="utf-8", errors="replace") as file:
            file.write("".join(lines))


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
