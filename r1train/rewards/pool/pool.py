"""Verifier processes for hostile answers: a fence, with a time limit for each answer.

Verifiers parse, simplify and sometimes `eval` what a model wrote: `9^{9^{9^9}}` takes for ever, and
`exec` could patch the verifier for all later answers. So answers are judged in processes of their
own.

What holds:
- Nothing that an answer has touched is unpickled or evaluated here. A verdict is a frame of 256
  bytes with a kind, an index, a finite score in [0, 1] and a line of text (`pool_frames`); any
  other bytes end their process and are an error for the answer that was being judged, for no other.
- Each batch of answers is judged in a fresh fork of a process that never saw an answer
  (`pool_worker`), and an answer that raised, ran out of time or did what the audit hook watches is
  the last one in its fork: no answer inherits what such another one left behind.
- Text that a verifier evaluates may be an expression over literals, for sympy's parser with the
  names of elementary mathematics, and nothing else; writing files, sockets, processes, `gc`,
  `ctypes`, `sqlite3` and whatever else the interpreter tells of end the process (`pool_audit`).
- The process has no environment but a few names, no descriptor but its line and /dev/null, limits
  of memory and processor time, and on Linux a seccomp filter and a signal at its parent's death
  (`pool_limits`). When the trainer is killed, no worker stays.

What does not: the hook lives in the interpreter that it watches. Code that got past the rule for
text can score its own answer, and read files as the user may, though it has nowhere to send them.
Without seccomp (macOS, other processors) only the hook and the limits are between such code and the
system.
"""

from __future__ import annotations

import multiprocessing.spawn
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
from dataclasses import dataclass, field
from math import ceil, inf
from multiprocessing.connection import wait
from typing import Any

from r1train.rewards.pool.frames import BadFrame, Frame, FrameReader, Kind, Outcome
from r1train.rewards.pool.worker import Judge

__all__ = ["Job", "Judge", "Outcome", "VerifierPool"]

START_UP_SECONDS = 120.0
_PATIENCE_SECONDS = 10.0  # beyond the time for an answer, which the worker keeps itself
_BATCH = 128
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "MPLCONFIGDIR",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
_PROGRAM = "from r1train.rewards.pool.worker import main; main()"
Job = tuple[str, Any]  # an answer, and the problem that the verifier knows


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    reader: FrameReader
    deadline: float
    ready: bool = False
    queue: deque[int] = field(default_factory=deque)  # jobs sent, the first is being worked on
    taken: int = 0  # verdicts of this batch


class VerifierPool:
    """Processes that run a verifier; a context manager. `timeout` is in seconds for each answer.

    `verifier(answer, problem)` returns a score in [0, 1]; it must pickle, and may have a
    `warm_up()` that imports what it needs. It may read files; what else it may do is in
    `r1train.rewards.pool.audit`.
    """

    def __init__(self, verifier: Judge, workers: int, timeout: float) -> None:
        if workers < 1 or not 0 < timeout < inf:
            raise ValueError(
                f"expected workers >= 1 and a finite timeout > 0, got {workers} and {timeout}"
            )
        self.timeout = timeout
        self.setup = _set_up(verifier, timeout)
        self.workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self.workers.append(self._start())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            _stop(worker)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of every job, in order."""
        outcomes: dict[int, Outcome] = {}
        size = min(_BATCH, ceil(len(jobs) / (2 * len(self.workers)))) or 1
        starts = range(0, len(jobs), size)
        waiting: deque[Sequence[int]] = deque(range(len(jobs))[i : i + size] for i in starts)
        for position, worker in enumerate(self.workers):
            if worker.queue or worker.process.poll() is not None:
                self._replace(position)  # it was killed, or the last run was broken off
        arrived: Sequence[object] = ()
        while len(outcomes) < len(jobs):
            for position, worker in enumerate(self.workers):
                failure = self._receive(worker, worker.channel in arrived, outcomes)
                if failure is not None:
                    if worker.queue:  # else it spoke out of turn, with no job to fail
                        outcomes[worker.queue.popleft()] = failure
                    if worker.queue:
                        waiting.appendleft(tuple(worker.queue))
                    self._replace(position)
                elif waiting and worker.ready and not worker.queue:
                    if self._send(worker, waiting[0], jobs):
                        waiting.popleft()
                    else:
                        self._replace(position)
            busy = [worker for worker in self.workers if worker.queue or not worker.ready]
            if busy and len(outcomes) < len(jobs):
                first = min(worker.deadline for worker in busy)
                arrived = wait([w.channel for w in busy], max(0.0, first - time.monotonic()))
        return [outcomes[i] for i in range(len(jobs))]

    def _send(self, worker: _Worker, batch: Sequence[int], jobs: Sequence[Job]) -> bool:
        """Whether the worker took the batch."""
        try:
            _send_pickled(worker.channel, [jobs[i] for i in batch])
        except ConnectionError:
            return False
        worker.queue.extend(batch)
        worker.taken = 0
        worker.deadline = self._deadline()
        return True

    def _receive(
        self, worker: _Worker, arrived: bool, outcomes: dict[int, Outcome]
    ) -> Outcome | None:
        """Take what has arrived; a failure of the first job if the worker is of no more use."""
        failure = None
        if arrived:
            try:
                for frame in worker.reader.frames():
                    self._take(worker, frame, outcomes)
                return None
            except (EOFError, ConnectionError):
                failure = Outcome(0.0, "error", "the verifier process died")
            except BadFrame as error:
                message = f"the verifier process broke its protocol: {error}"
                failure = Outcome(0.0, "error", message)
        elif (worker.queue or not worker.ready) and time.monotonic() >= worker.deadline:
            failure = Outcome(0.0, "timeout", "the verifier process does not answer")
        if failure is not None and not worker.ready:
            reason = failure.message or f"not within {START_UP_SECONDS:g} s"
            raise RuntimeError(f"a verifier process did not start: {reason} (see its output above)")
        return failure

    def _take(self, worker: _Worker, frame: Frame, outcomes: dict[int, Outcome]) -> None:
        if frame.kind is Kind.BROKEN:
            raise RuntimeError(f"a verifier process cannot work: {frame.message}")
        if frame.kind is Kind.READY and not worker.ready:
            worker.ready = True
            return
        if frame.kind not in (Kind.SCORE, Kind.ERROR, Kind.TIMEOUT):
            raise BadFrame(f"{frame.kind.name} out of turn")
        if not worker.queue or frame.job != worker.taken:
            raise BadFrame(f"an unsolicited verdict on job {frame.job}")
        outcomes[worker.queue.popleft()] = frame.outcome
        worker.taken += 1
        worker.deadline = self._deadline()

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout + _PATIENCE_SECONDS

    def _replace(self, position: int) -> None:
        _stop(self.workers[position])
        self.workers[position] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the trainer's business
            )
        deadline = time.monotonic() + START_UP_SECONDS
        worker = _Worker(process, ours, FrameReader(ours.fileno()), deadline)
        with suppress(ConnectionError):  # it died: there is an end to be received
            _send_pickled(ours, self.setup)
        return worker


def _set_up(verifier: Judge, timeout: float) -> dict[str, Any]:
    """What a worker needs before its first job."""
    # Refuses to be called where a script without its `__main__` guard is being loaded in a worker.
    prepared = multiprocessing.spawn.get_preparation_data("verifier")
    pickled, main = pickle.dumps(verifier), None
    if b"__main__" in pickled:  # the verifier stands in the script that runs: load it there too
        main = {key: prepared[key] for key in prepared if key.startswith("init_main")}
    return {"verifier": pickled, "timeout": timeout, "main": main}


def _environment() -> dict[str, str]:
    """What a Python needs to start and to find the same modules: no tokens, no keys."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    kept["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _send_pickled(channel: socket.socket, value: object) -> None:
    data = pickle.dumps(value)
    channel.sendall(len(data).to_bytes(8, "big") + data)


def _stop(worker: _Worker) -> None:
    worker.channel.close()  # it ends by that, its child first
    try:
        worker.process.wait(5.0)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
