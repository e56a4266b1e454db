"""Verifier processes for hostile answers: each has a time limit, and a hung process is killed.

Verifiers parse, simplify and sometimes `eval` what a model wrote: `9^{9^{9^9}}` takes for ever, and
some libraries' own limits need a main thread. Here a verifier runs in the main thread of a process
of its own, with a timer, a memory limit and an audit hook that refuses to write files, open sockets
or start programs. The hook is a second fence, not a sandbox for code written to break out.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

from r1train.tasks import Problem, Verifier

START_UP_SECONDS = 120.0
MEMORY_BYTES = 4 << 30
Job = tuple[str, Problem]


class Outcome(NamedTuple):
    """What became of one answer; a failure scores 0 and says why."""

    score: float
    failure: Literal["error", "timeout"] | None = None
    message: str = ""


@dataclass
class _Worker:
    process: Any
    connection: Connection
    deadline: float
    ready: bool = False
    queue: deque[int] = field(default_factory=deque)  # jobs sent, the first is being worked on


class VerifierPool:
    """Processes that run a verifier; a context manager. `timeout` is in seconds for each answer."""

    def __init__(self, verifier: Verifier, workers: int, timeout: float) -> None:
        self.verifier, self.timeout = verifier, timeout
        self.context = multiprocessing.get_context("spawn")  # a fork would copy a loaded torch
        self.workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            _stop(worker)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of every job, in order."""
        outcomes: dict[int, Outcome] = {}
        size = min(32, ceil(len(jobs) / (2 * len(self.workers)))) or 1
        starts = range(0, len(jobs), size)
        waiting: deque[Sequence[int]] = deque(range(len(jobs))[i : i + size] for i in starts)
        self.workers = [w if w.process.is_alive() else self._start() for w in self.workers]
        while len(outcomes) < len(jobs):
            for worker in self.workers:
                if waiting and worker.ready and not worker.queue:
                    worker.queue.extend(waiting.popleft())
                    worker.connection.send([jobs[i] for i in worker.queue])
                    worker.deadline = self._deadline()
            for position, worker in enumerate(self.workers):
                if worker.ready and not worker.queue:
                    continue
                failure = self._receive(worker, outcomes)
                if failure is not None:
                    outcomes[worker.queue.popleft()] = failure
                    if worker.queue:
                        waiting.appendleft(worker.queue)
                    _stop(worker)
                    self.workers[position] = self._start()
            busy = [worker for worker in self.workers if worker.queue or not worker.ready]
            if busy and len(outcomes) < len(jobs):
                first = min(worker.deadline for worker in busy)
                wait([worker.connection for worker in busy], max(0.0, first - time.monotonic()))
        return [outcomes[i] for i in range(len(jobs))]

    def _receive(self, worker: _Worker, outcomes: dict[int, Outcome]) -> Outcome | None:
        """Take what has arrived; a failure if the process died or its time is over."""
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if worker.ready:
                    outcomes[worker.queue.popleft()] = Outcome(*message)
                worker.ready = True
                worker.deadline = self._deadline()
        except (EOFError, ConnectionError):
            if worker.queue:
                return Outcome(0.0, "error", "the verifier process died")
        if worker.ready and (not worker.queue or time.monotonic() < worker.deadline):
            return None
        if worker.ready:
            return Outcome(0.0, "timeout")
        if time.monotonic() < worker.deadline and worker.process.is_alive():
            return None
        raise RuntimeError(
            "a verifier process did not start: its own message is above; scripts that use "
            "RewardPool need the `if __name__ == '__main__':` guard that multiprocessing asks for"
        )

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout + 1.0  # the worker's own timer comes first

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_serve, args=(theirs, self.verifier, self.timeout), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, deadline=time.monotonic() + START_UP_SECONDS)


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()


# What follows runs in the worker process.


class _Expired(BaseException):
    """Not an Exception: verifiers swallow those."""


def _serve(connection: Connection, verifier: Verifier, timeout: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    verifier.warm_up()
    _lock_down()
    connection.send(None)
    while True:
        try:
            jobs = connection.recv()
        except EOFError:
            return
        for answer, problem in jobs:
            connection.send(tuple(_judge(verifier, answer, problem, timeout)))


def _judge(verifier: Verifier, answer: str, problem: Problem, timeout: float) -> Outcome:
    expired = False

    def expire(*_: object) -> None:
        nonlocal expired
        expired = True
        raise _Expired

    signal.signal(signal.SIGALRM, expire)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout)
            score = verifier(answer, problem)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Expired:
        return Outcome(0.0, "timeout")
    except BaseException as error:  # SystemExit too: an answer may be `exit()`
        return Outcome(0.0, "error", f"{type(error).__name__}: {error}"[:200])
    return Outcome(0.0, "timeout") if expired else Outcome(score)  # a bare except swallowed it


def _lock_down() -> None:
    logging.disable(logging.CRITICAL)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for the process's lifetime)
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reading = {"os.listdir", "os.scandir"}  # imports look for files
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        family = event.partition(".")[0]
        harmful = family in {"os", "subprocess", "socket", "shutil", "ctypes", "pty"}
        if event == "open":
            harmful = bool(args[2] & writing)
        if harmful and event not in reading:
            raise PermissionError(f"a verifier may not do this: {event}")

    sys.addaudithook(refuse)
