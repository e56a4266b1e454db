"""Processes that call a user's function, each call under a time limit."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

from r1train.config.schema import RunError
from r1train.rewards.custom.function import Values
from r1train.rewards.custom.worker import READY

START_UP_SECONDS = 300.0  # a file may load a model when it is imported
_PROGRAM = "from r1train.rewards.custom.worker import main; main()"
Arguments = dict[str, list[Any]]


class Failure(NamedTuple):
    """Why a call gave no values."""

    kind: Literal["error", "timeout"]
    message: str


Outcome = Values | Failure


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Connection
    deadline: float
    ready: bool = False
    job: int | None = None


class FunctionPool:
    """`workers` processes that call the function `spec`; each call has `timeout` seconds.

    They have the trainer's environment and its output, but no terminal input.
    """

    def __init__(self, spec: str, workers: int, timeout: float) -> None:
        self.spec, self.timeout = spec, timeout
        self.workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self.workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for worker in self.workers:
            _stop(worker)

    def run(self, calls: Sequence[Arguments], most_timeouts: float = inf) -> list[Outcome]:
        """The outcome of a call with each of the arguments, in order.

        After `most_timeouts` of them have run out of time, the rest is given up as if it had too.
        """
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(calls)))
        for worker in self.workers:
            if worker.job is not None:  # the last run was broken off
                self._replace(worker)
        while len(outcomes) < len(calls):
            for worker in list(self.workers):
                if waiting and worker.ready and worker.job is None:
                    self._send(worker, waiting, calls)
            busy = [worker for worker in self.workers if worker.job is not None or not worker.ready]
            first = min(worker.deadline for worker in busy)
            arrived = wait([w.channel for w in busy], max(0.0, first - time.monotonic()))
            for worker in busy:
                outcome = self._outcome(worker, worker.channel in arrived)
                if outcome is None or worker.job is None:
                    continue
                outcomes[worker.job], worker.job = outcome, None
                if isinstance(outcome, Failure):
                    most_timeouts -= outcome.kind == "timeout"
            if most_timeouts <= 0:
                given_up = Failure("timeout", "not tried: others before it ran out of time")
                outcomes |= dict.fromkeys(waiting, given_up)
                waiting.clear()
        return [outcomes[i] for i in range(len(calls))]

    def _send(self, worker: _Worker, waiting: deque[int], calls: Sequence[Arguments]) -> None:
        try:
            worker.channel.send_bytes(pickle.dumps(calls[waiting[0]]))
        except ConnectionError:  # it ended while it had nothing to do
            self._replace(worker)
            return
        worker.job = waiting.popleft()
        worker.deadline = time.monotonic() + self.timeout

    def _outcome(self, worker: _Worker, arrived: bool) -> Outcome | None:
        """What a worker says or what has become of it; None where there is nothing to say."""
        if arrived:
            try:
                said = worker.channel.recv_bytes()
            except (EOFError, OSError):
                return self._lost(worker, Failure("error", f"{self.spec}: {_fate(worker)}"))
            if worker.ready:  # it has been called
                reply = json.loads(said)
                values: Values | None = reply.get("values")
                return Failure("error", reply["error"]) if values is None else values
            if said != READY:
                raise RunError(said.decode("utf-8", "replace"))
            worker.ready = True
        elif time.monotonic() >= worker.deadline:
            limit = f"{self.timeout if worker.ready else START_UP_SECONDS:g} s"
            return self._lost(worker, Failure("timeout", f"{self.spec} took longer than {limit}"))
        return None

    def _lost(self, worker: _Worker, failure: Failure) -> Failure:
        """Another process in the place of one that is of no more use."""
        if not worker.ready:
            raise RunError(
                f"rewards.functions: the process for {self.spec} did not start: {failure.message}"
            )
        self._replace(worker)
        return failure

    def _replace(self, worker: _Worker) -> None:
        _stop(worker)
        self.workers[self.workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (self.spec, str(theirs.fileno()), str(os.getpid()))
            folders = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *arguments],
                env={**os.environ, "PYTHONPATH": folders},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the trainer's business
            )
        return _Worker(process, Connection(ours.detach()), time.monotonic() + START_UP_SECONDS)


def _fate(worker: _Worker) -> str:
    """How a process ended, now that its socket is closed."""
    with suppress(subprocess.TimeoutExpired):
        code = worker.process.wait(1.0)
        if code >= 0:
            return f"its process ended with status {code}"
        return f"its process was ended by {signal.Signals(-code).name}"
    return "its process closed its socket"


def _stop(worker: _Worker) -> None:
    """End a process and what it has started: at once where it is at work, else by its own will."""
    worker.channel.close()
    if worker.job is None and worker.ready:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(2.0)
    with suppress(ProcessLookupError, PermissionError):  # it is gone: macOS says the second
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
