"""Stages of runs in several processes, each as soon as those that it needs are finished."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cache

from r1train.run.signals import Signals, Stopped, say
from r1train.run.worker import Job

PATIENCE = 600.0  # seconds that a stage which is broken off may take to be saved


class Worker:
    """A process of `r1train.run.worker`, and the job that it has."""

    def __init__(self, threads: int, kept_open: Collection[int]) -> None:
        self.job: Job | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "r1train.run.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            pass_fds=tuple(kept_open),
            start_new_session=True,  # Ctrl-C is for the parent, which has it saved here
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def start(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # it has died: `answer` says so
            self.input.write(job.line())
            self.input.flush()

    def answer(self) -> str | None:
        """Why the job that it has failed, once there is something to read; None where it is
        finished."""
        line = self.output.readline()
        try:
            error: str | None = json.loads(line).get("error")
            return error
        except ValueError:
            status = self.process.wait()
            assert self.job is not None
            log = self.job.folder / self.job.stage / "log.txt"
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            return f"its process ended {how}; what it printed is in {log}"

    def stop(self) -> None:
        """Asks it to end, which saves its stage."""
        with suppress(OSError):
            self.input.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


class Schedule:
    """Jobs, and which of them each needs.

    `started` and `ended` are told of each; the latter with a reason where it failed. What needs a
    job that failed is not begun; all else goes on.
    """

    def __init__(
        self,
        needs: Mapping[Job, Collection[Job]],
        started: Callable[[Job], None],
        ended: Callable[[Job, str | None], None],
    ) -> None:
        self.needs, self.started, self.ended = needs, started, ended
        self.waiting = longest_first(needs)
        self.done: set[Job] = set()

    def run(
        self, processes: int, threads: int, signals: Signals, kept_open: Collection[int] = ()
    ) -> None:
        """All that can be done, by so many processes, which have these descriptors.

        Whatever comes in between, a signal too, ends them once their stages are saved; meanwhile
        another signal waits.
        """
        workers: list[Worker] = []
        with selectors.DefaultSelector() as ready, signals.held():
            try:
                with signals.released():
                    while True:
                        self._hand_out(workers, processes, threads, kept_open, ready)
                        if not any(worker.job for worker in workers):
                            break
                        for key, _ in ready.select():
                            self._end(key.data, workers, ready)
            except (Stopped, KeyboardInterrupt) as stop:
                say(f"{str(stop) or 'Ctrl-C'}: the stages at work are saved first, then stopped")
                raise
            finally:
                for worker in workers:
                    worker.stop()
                for worker in workers:
                    worker.wait()

    def _hand_out(
        self,
        workers: list[Worker],
        processes: int,
        threads: int,
        kept_open: Collection[int],
        ready: selectors.BaseSelector,
    ) -> None:
        for job in [job for job in self.waiting if self.done.issuperset(self.needs[job])]:
            worker = next((worker for worker in workers if worker.job is None), None)
            if worker is None and len(workers) < processes:
                worker = Worker(threads, kept_open)
                workers.append(worker)
                ready.register(worker.output, selectors.EVENT_READ, worker)
            if worker is None:
                return
            self.waiting.remove(job)
            self.started(job)
            worker.start(job)

    def _end(self, worker: Worker, workers: list[Worker], ready: selectors.BaseSelector) -> None:
        job = worker.job
        if job is not None:
            failure = worker.answer()
            if failure is None:
                self.done.add(job)
            worker.job = None
            self.ended(job, failure)
        if job is None or worker.process.poll() is not None:  # an idle one only says that it dies
            ready.unregister(worker.output)
            workers.remove(worker)
            worker.wait()


def longest_first(needs: Mapping[Job, Collection[Job]]) -> list[Job]:
    """Jobs by how many others come after one another behind them, the most first; of equals, in
    the order given."""
    behind: dict[Job, list[Job]] = {job: [] for job in needs}
    for job, needed in needs.items():
        for one in needed:
            if one in behind:
                behind[one].append(job)

    @cache
    def length(job: Job) -> int:
        return 1 + max(map(length, behind[job]), default=0)

    return sorted(needs, key=lambda job: -length(job))
