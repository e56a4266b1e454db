"""The run folder: everything a run leaves behind, readable at any moment of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1train.config.recipe import to_toml
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.report.trackers import Trackers

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}


class RunFolder:
    """A folder with config.toml, metrics.jsonl, samples.jsonl, summary.json and PNG plots.

    A line is written when `log` returns, so a run that is interrupted leaves a usable folder; of a
    machine that is, the last line may be torn, and is read past. Raises ConfigError where the
    folder cannot be written, as on a full disk.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trackers = Trackers()

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """A new folder `output_dir/name`, or `name-2` and so on: no run overwrites another."""
        number, path = 1, Path(config.output_dir) / config.name
        while True:
            try:
                path.mkdir(parents=True)
                break
            except OSError as error:
                if isinstance(error, FileExistsError) and os.path.lexists(path):
                    number += 1
                    path = path.with_name(f"{config.name}-{number}")
                    continue
                reason = f"{path} cannot be made: {error.strerror}"
                raise ConfigError(f"output_dir = {config.output_dir!r}: {reason}") from None
        folder = cls(path)
        folder._replace("config.toml", to_toml(config))
        folder.trackers.open(config, path)
        return folder

    def log(self, step: int, metrics: Mapping[str, float], stage: str = "grpo") -> None:
        """Append one line to metrics.jsonl; figures that are not finite become null.

        The trackers of `report_to` are told what is finite.
        """
        self._append("metrics.jsonl", [{"step": step, "stage": stage, **metrics}])
        self.trackers.log(step, metrics, stage)

    def log_samples(
        self, step: int, samples: Iterable[Mapping[str, Any]], stage: str = "grpo"
    ) -> None:
        """Append completions with their prompts and rewards to samples.jsonl."""
        lines = [{"step": step, "stage": stage, **sample} for sample in samples]
        self._append("samples.jsonl", lines)

    def close(self) -> None:
        """The run is over: trackers send what they still hold."""
        self.trackers.close()

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Replace summary.json as a whole: a reader never sees half of it."""
        return self._replace("summary.json", json.dumps(_finite(summary), indent=2) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, without lines that a crash has torn."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return [record for line in lines if (record := _record(line)) is not None]

    def plot(self) -> list[Path]:
        """Draw what metrics.jsonl holds: reward.png and training.png, each if it has data."""
        from r1train.report.plots import plot_reward, plot_training  # matplotlib is slow to import

        drawn = [plot_reward(self.metrics(), self.path / "reward.png")]
        drawn.append(plot_training(self.metrics(), self.path / "training.png"))
        return [path for path in drawn if path is not None]

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records]
        with self._writing(name), open(self.path / name, "a", **TEXT) as file:
            file.write("".join(lines))

    def _replace(self, name: str, text: str) -> Path:
        path = self.path / name
        partial = path.with_name(name + ".partial")
        with self._writing(name):
            partial.write_text(text, **TEXT)
            os.replace(partial, path)
        return path

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self.path / name} cannot be written: {error.strerror}; make room, or choose "
                "another output_dir"
            ) from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # torn, or empty after the last line
        return None
    return record if isinstance(record, dict) and {"step", "stage"} <= record.keys() else None


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
