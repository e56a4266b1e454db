"""The run folder: everything a run leaves behind, readable at any moment of it."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from r1train.config.recipe import to_toml
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.report.console import CONSOLE
from r1train.report.records import logged, read_json, read_record
from r1train.report.trackers import Trackers
from r1train.run.writing import replaced, synced, writing

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
LOGS = ("metrics.jsonl", "samples.jsonl")
PLAN = "plan.json"
STARTED = "started.json"
"""Where a run was started: relative paths of its options are of that folder."""
TRACKED = "trackers.json"
"""By what trackers find the run again."""


class RunFolder:
    """A folder with config.toml, metrics.jsonl, samples.jsonl, summary.json and PNG plots, and one
    for each stage. `checkpoint` leads to the newest model.

    Every stage logs in its own folder, so that several may be at work; the logs of the run are
    theirs one after the other, made anew whenever one ends. A line is written when `log` returns,
    so a run that is interrupted leaves a usable folder; of a machine that is, the last line may be
    torn, and is read past. Raises ConfigError where the folder cannot be written, as on a full
    disk.
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
        folder.write("config.toml", to_toml(config))
        folder.write(STARTED, json.dumps({"folder": str(Path.cwd())}) + "\n")
        return folder

    def report(self, config: Config) -> None:
        """Figures go to the trackers of `report_to` from now on; of a run that goes on, to the runs
        that they had for it before. Raises ConfigError where one cannot be started."""
        ids = read_json(self.path / TRACKED) or {}
        self.trackers.open(config, self.path, ids)
        if self.trackers.ids.items() - ids.items():
            self.write(TRACKED, json.dumps({**ids, **self.trackers.ids}) + "\n")

    def resume(self, stage: str, step: int, sizes: Mapping[str, int]) -> None:
        """A stage goes on after this step: what it logged after `sizes` were these is taken back,
        and the trackers know that it comes again."""
        self.begin(stage, sizes)
        self.trackers.resume(stage, step)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Within it no other process writes to the folder but those that are given the descriptor:
        it is locked until they have ended too. Raises ConfigError where one does."""
        path = self.path / ".lock"
        with ExitStack() as closing:
            with writing(path):
                file = closing.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{self.path}: another process is at work on this run") from None
            yield file.fileno()

    def at_work(self) -> bool:
        """Whether a process is within `locked`."""
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # another: no process has been
            return isinstance(error, BlockingIOError)
        return False

    def link(self, checkpoint: Path) -> Path:
        """Lets `checkpoint` lead to a model inside the folder."""
        link = self.path / "checkpoint"
        with writing(link), replaced(link) as new:
            new.symlink_to(os.path.relpath(checkpoint, self.path))
        return link

    def begin(self, stage: str, sizes: Mapping[str, int] | None = None) -> None:
        """A stage is at work from now on. Of what it has logged before, so many bytes stay, by
        default none."""
        for name in LOGS:
            path = self.path / stage / name
            kept = (sizes or {}).get(name, 0)
            if path.exists() and path.stat().st_size > kept:
                with writing(path):
                    os.truncate(path, kept)

    def sizes(self, stage: str) -> dict[str, int]:
        """Bytes that a stage has logged, on the disk now: what `begin` goes back to."""
        self.sync(stage)
        logs = {name: self.path / stage / name for name in LOGS}
        return {name: path.stat().st_size for name, path in logs.items() if path.exists()}

    def sync(self, stage: str) -> None:
        """What a stage has logged is on the disk now."""
        for path in (self.path / stage / name for name in LOGS):
            if path.exists():
                with writing(path):
                    synced(path)

    def join(self) -> None:
        """The logs of the run are those of its stages, in their order."""
        for name in LOGS:
            path = self.path / name
            with writing(path), replaced(path) as partial, open(partial, "wb") as file:
                for stage in self.stages():
                    file.writelines(whole_lines(self.path / stage / name))

    def stages(self) -> list[str]:
        """Names of the stages that have logged something: in the order of the recipe, and before
        them those that are of no recipe."""
        planned = [stage["name"] for stage in read_json(self.path / PLAN) or []]
        place = {name: number for number, name in enumerate(planned)}
        found = {path.parent.name for name in LOGS for path in self.path.glob(f"*/{name}")}
        return sorted(found, key=lambda name: (place.get(name, -1), name))

    def log(self, step: int, metrics: Mapping[str, float], stage: str = "grpo") -> None:
        """Append one line to the stage's metrics.jsonl; figures that are not finite become null.

        The trackers of `report_to` are told what is finite.
        """
        self._append(f"{stage}/metrics.jsonl", [{"step": step, "stage": stage, **metrics}])
        self.trackers.log(step, metrics, stage)

    def log_samples(
        self, step: int, samples: Iterable[Mapping[str, Any]], stage: str = "grpo"
    ) -> None:
        """Append completions with their prompts and rewards to the stage's samples.jsonl."""
        lines = [{"step": step, "stage": stage, **sample} for sample in samples]
        self._append(f"{stage}/samples.jsonl", lines)

    def track(self, stage: str) -> None:
        """Tells the trackers what another process has logged of a stage."""
        for _, record in logged(self.path / stage / "metrics.jsonl"):
            step = record.pop("step")
            self.trackers.log(step, record, stage)

    def close(self) -> None:
        """The run is over: trackers send what they still hold."""
        self.trackers.close()

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Replace summary.json."""
        return self.write("summary.json", json.dumps(_finite(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """What summary.json holds; None where there is none that can be read."""
        found = read_json(self.path / "summary.json")
        return found if isinstance(found, dict) else None

    def metrics(self) -> list[dict[str, Any]]:
        """What the stages have logged, in their order, without lines that a crash has torn."""
        logs = (self.path / stage / "metrics.jsonl" for stage in self.stages())
        return [record for log in logs for _, record in logged(log)]

    def plot(self) -> list[Path]:
        """Draw what the stages have logged: reward.png and training.png, each if it has data."""
        from r1train.report.plots import plot_reward, plot_training  # matplotlib is slow to import

        records = self.metrics()
        drawn = []
        for suffix, names in _plotted(records):
            own = [record for record in records if record["stage"] in names]
            own = [{**record, "stage": names[record["stage"]]} for record in own]
            drawn.append(plot_reward(own, self.path / f"reward{suffix}.png"))
            drawn.append(plot_training(own, self.path / f"training{suffix}.png"))
        return [path for path in drawn if path is not None]

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records]
        path = self.path / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with writing(path), open(path, "a", **TEXT) as file:
            file.write("".join(lines))

    def write(self, name: str, text: str) -> Path:
        """Replaces a file as a whole, which is on the disk then: a reader never sees half of it."""
        path = self.path / name
        with writing(path), replaced(path) as partial:
            partial.write_text(text, **TEXT)
        return path

    def copy_logs(self, other: Path, stage: str) -> None:
        """Takes the lines of a stage of another run."""
        for name in LOGS:
            path = self.path / stage / name
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"".join(whole_lines(other / stage / name)))


def started_in(run: Path) -> Path | None:
    """The folder that a run was started in; None where that is not there any more, is the current
    one, or an earlier version of this program made the run, which did not say."""
    found = read_record(run / STARTED).get("folder")
    if not isinstance(found, str):
        return None
    folder = Path(found)
    return folder if folder.is_dir() and folder != Path.cwd() else None


@contextmanager
def where_started(run: Path) -> Iterator[Path]:
    """Within it the current folder is the one that a run was started in, where that is known and
    still there; gives the run's own as it is named from there."""
    folder, before = started_in(run), Path.cwd()
    if folder is None:
        yield run
        return
    CONSOLE.print(f"{run}: relative paths are those of {folder}, where it was started")
    os.chdir(folder)
    try:
        yield before / run
    finally:
        os.chdir(before)


def whole_lines(log: Path) -> Iterator[bytes]:
    """Of a stage's log, to be written to another."""
    return (line + b"\n" for line, _ in logged(log))


def _plotted(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """Suffixes of plots, and the stages on each with what they are: "sft" or "grpo".

    One supervised and one reinforcement-learning stage share a plot; of more, each has its own.
    """
    kinds: dict[str, str] = {}
    for record in records:
        if any(name.startswith("rewards/") for name in record) or record["stage"] not in kinds:
            rewarded = any(name.startswith("rewards/") for name in record)
            kinds[record["stage"]] = "grpo" if rewarded or record["stage"] == "grpo" else "sft"
    if len(set(kinds.values())) == len(kinds):
        return [("", kinds)]
    return [(f"-{name}", {name: kind}) for name, kind in kinds.items()]


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
