"""A process that runs stages one after another, as its parent asks: `python -m r1train.run.worker`.

A line of standard input is a job, the folder of a run and the name of one of its stages; a line of
standard output says how it ended. What a stage prints goes to log.txt in its folder. SIGTERM breaks
the stage off, which is saved first; so does the parent's death.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError, RunError
from r1train.rewards.pool.limits import die_with
from r1train.run.artifacts import finished, plan
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals, stopping_signals
from r1train.run.stage_run import StageRun
from r1train.run.supplies import Supplies
from r1train.seeds import deterministic


@dataclass(frozen=True)
class Job:
    """A stage of a run."""

    folder: Path
    stage: str

    def line(self) -> bytes:
        return json.dumps({"folder": str(self.folder), "stage": self.stage}).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Job:
        found = json.loads(line)
        return cls(Path(found["folder"]), found["stage"])


def run_stage(job: Job, signals: Signals) -> None:
    """A stage whose inputs are there, to its end; broken off, it is saved."""
    config = load_config(job.folder / "config.toml")
    one = next(each for each in plan(config) if each.name == job.stage)
    with deterministic(config.threads), ExitStack() as closing:
        supplies = Supplies(config.seed, finished(job.folder), closing)
        work = StageRun(one, RunFolder(job.folder), supplies, signals)
        with signals.held():
            try:
                with signals.released():
                    work.run()
            except BaseException:
                work.save()
                raise


def main() -> None:
    """Jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: the parent has it too, and says
    with stopping_signals() as signals:
        die_with(os.getppid(), signal.SIGTERM)
        transformers_logging.disable_progress_bar()
        for line in sys.stdin.buffer:
            job = Job.of(line)
            answer: dict[str, Any] = {}
            with _Printing(job.folder / job.stage / "log.txt"):
                try:
                    run_stage(job, signals)
                except (ConfigError, RunError, OSError) as error:
                    answer = {"error": str(error)}
                except Exception:  # a fault of the program: the next stage has a new process
                    traceback.print_exc()
                    raise SystemExit(1) from None
            answers.write(json.dumps(answer).encode() + b"\n")


class _Printing:
    """Within it what the process prints is appended to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        sys.stdout.flush()
        self.before = os.dup(1), os.dup(2)
        with open(self.path, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), self.before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


if __name__ == "__main__":
    main()
