"""The process that judges answers: a keeper that never sees one, and children that are thrown away.

The keeper (`main`) is started once for each worker of a `VerifierPool`. It imports what the
verifier needs and then forks a child for each batch of jobs, which the child inherits. The keeper
asks for one verdict after the other; it throws the child away and forks another for the rest once
an answer raised, ran out of time, or did what the audit hook watches. With reasoning-gym and sympy
loaded, a fork costs about 10 ms of processor time and a question 0.1 ms, starting anew two seconds.

The keeper has one thread, runs no code that an answer could have touched and reads nothing from a
child but frames. It kills the child where the time for an answer is over and where the trainer is
gone, which it sees by the end of its socket and by its parent's number: a signal at the parent's
death would also come when the thread ends that started it. A child does get that signal, since the
keeper's only thread forks it.
"""

from __future__ import annotations

import _thread
import gc
import logging
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from contextlib import suppress
from math import ceil, isfinite
from numbers import Real
from typing import Any, Protocol

from r1train.rewards.pool.audit import Audit
from r1train.rewards.pool.frames import BadFrame, Frame, FrameReader, Kind
from r1train.rewards.pool.limits import Limits

_PARENT_CHECK_SECONDS = 1.0
_TELL_SECONDS = 0.1  # verdicts are passed on together, or after this time
_GO = b"\1"
Jobs = list[tuple[str, Any]]


class Judge(Protocol):
    """A verifier: any callable that pickles. Its `warm_up()`, if it has one, runs once."""

    def __call__(self, answer: str, problem: Any, /) -> float: ...


# The keeper.


class _TrainerGone(BaseException):
    """Nobody is left to judge for."""


def main() -> None:
    """Entry of the process; its arguments are a socket's descriptor and the trainer's number."""
    descriptor, trainer = int(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the trainer's business: it may want a last verdict
    with socket.socket(fileno=descriptor) as channel, suppress(_TrainerGone):
        Keeper(channel, trainer).serve()


class Keeper:
    """Serves one trainer over `channel`: pickled jobs come, frames go."""

    def __init__(self, channel: socket.socket, trainer: int) -> None:
        self.channel, self.trainer = channel, trainer
        self.verifier: Judge
        self.timeout: float
        self.limits = Limits()
        self.dying: deque[_Child] = deque()

    def serve(self) -> None:
        try:
            self._set_up(self._receive())
            self.send([Frame(Kind.READY)])
            while True:
                jobs = self._receive()
                position = 0
                while position < len(jobs):
                    position = self._judge_in_a_child(jobs, position)
                self._reap()
        except Exception as error:
            traceback.print_exc()
            self.send([Frame(Kind.BROKEN, message=_describe(error))])

    def _set_up(self, setup: dict[str, Any]) -> None:
        self.timeout = setup["timeout"]
        if setup["main"] is not None:
            process: Any = multiprocessing.process.current_process()
            process._inheriting = True  # a script without its `__main__` guard is told so
            multiprocessing.spawn.prepare(setup["main"])
            process._inheriting = False
        self.verifier = pickle.loads(setup["verifier"])  # from the trainer, before any answer
        warm_up = getattr(self.verifier, "warm_up", None)
        if warm_up is not None:
            warm_up()
        logging.disable(logging.CRITICAL)
        _fill_caches()
        if _thread._count():
            raise RuntimeError("the verifier's warm_up leaves threads running: it cannot be forked")
        sys.dont_write_bytecode = True
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        os.close(nowhere)
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page

    def _receive(self) -> Any:
        """The next object that the trainer sends. Pickled: it is trusted, answers never are."""
        size = int.from_bytes(self._receive_bytes(8), "big")
        return pickle.loads(self._receive_bytes(size))

    def _receive_bytes(self, count: int) -> bytes:
        parts = bytearray()
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while len(parts) < count:
            while not poll.poll(1000 * _PARENT_CHECK_SECONDS):
                self.check_trainer()
            try:
                part = self.channel.recv(min(count - len(parts), 1 << 20))
            except ConnectionError:
                raise _TrainerGone from None
            if not part:
                raise _TrainerGone
            parts += part
        return bytes(parts)

    def send(self, frames: list[Frame]) -> None:
        try:
            self.channel.sendall(b"".join(frame.encode() for frame in frames))
        except ConnectionError:
            raise _TrainerGone from None

    def check_trainer(self) -> None:
        if os.getppid() != self.trainer:
            raise _TrainerGone

    def _judge_in_a_child(self, jobs: Jobs, start: int) -> int:
        """Judge from `start` on in one process; the position of the first job that it left."""
        ours, theirs = socket.socketpair()
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self.channel.close()
                seconds = ceil((len(jobs) - start) * (self.timeout + 1))
                self.limits.take_on(keeper, cpu_seconds=seconds)
                _judge_all(self.verifier, jobs, start, theirs.fileno())
            except Exception as error:  # of taking on the limits
                os.write(theirs.fileno(), _error(start, _describe(error)).encode())
            finally:
                os._exit(1)
        theirs.close()
        child = _Child(pid)
        try:
            return _Watch(self, child, ours, len(jobs)).follow(start)
        finally:
            child.kill()
            ours.close()
            self.dying.append(child)
            self._reap(all_but=1)  # to take its memory down takes as long as to fork the next

    def _reap(self, all_but: int = 0) -> None:
        while len(self.dying) > all_but:
            self.dying.popleft().reap()


class _Child:
    """A forked process, which nobody else waits for: its number is its own until it is reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None

    def fate(self) -> str:
        """How it ended, now that its pipe is closed."""
        for _ in range(50):
            if self.reap(os.WNOHANG):
                break
            time.sleep(0.01)
        if self.exit_code is None:
            return "closed its pipe"
        if self.exit_code >= 0:
            return f"ended with status {self.exit_code}"
        return f"was ended by {signal.Signals(-self.exit_code).name}"

    def kill(self) -> None:
        """End it and what it may have started."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            with suppress(ProcessLookupError, PermissionError):  # it has no group yet, or no longer
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self, options: int = 0) -> bool:
        """Whether it is gone."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None


class _Watch:
    """Asks one child for one verdict after the other, while it keeps the rules."""

    def __init__(self, keeper: Keeper, child: _Child, line: socket.socket, jobs: int) -> None:
        self.keeper, self.child, self.line, self.jobs = keeper, child, line, jobs
        self.reader = FrameReader(line.fileno())
        self.poll = select.poll()
        self.poll.register(line, select.POLLIN)
        self.poll.register(keeper.channel, select.POLLIN)  # nothing comes now but its end
        self.watched = False
        self.untold: list[Frame] = []

    def follow(self, job: int) -> int:
        """Have jobs judged from this one on; the first that is left, the child being of no use."""
        usable = True
        while usable and job < self.jobs:
            verdict, usable = self._verdict(job)
            self.untold.append(verdict)
            job += 1
        self._tell()
        return job

    def _verdict(self, job: int) -> tuple[Frame, bool]:
        """The verdict on one job, and whether the child may judge another."""
        deadline = time.monotonic() + self.keeper.timeout
        with suppress(ConnectionError):  # it died: its end is read below
            self.line.send(_GO)
        verdict = None
        while (left := deadline - time.monotonic()) > 0:
            if not self._wait(left):
                continue
            try:
                for frame in self.reader.frames():
                    verdict = self._checked(frame, job, verdict)
                if verdict is not None and self.reader.rest:
                    raise BadFrame("more than a verdict")
            except EOFError:
                if verdict is None or self.reader.rest:
                    verdict = _error(job, f"the verifier process {self.child.fate()}")
                return verdict, False
            except BadFrame as error:
                return _error(job, f"the verifier process broke its protocol: {error}"), False
            if verdict is not None and verdict.kind is Kind.SCORE and not self.watched:
                return verdict, True
            # Otherwise the child ends by itself, and must do so without another word.
        message = f"longer than {self.keeper.timeout:g} s"
        return Frame(Kind.TIMEOUT, job, message=message), False

    def _wait(self, seconds: float) -> bool:
        """Whether the child says something in this time, or before it is time for other things."""
        seconds = min(seconds, _TELL_SECONDS if self.untold else _PARENT_CHECK_SECONDS)
        ready = self.poll.poll(1000 * seconds)
        self.keeper.check_trainer()
        if any(descriptor == self.keeper.channel.fileno() for descriptor, _ in ready):
            raise _TrainerGone
        if not ready:
            self._tell()
        return bool(ready)

    def _checked(self, frame: Frame, job: int, verdict: Frame | None) -> Frame | None:
        """The frame if it is the verdict, None if it is the word that comes before some."""
        if verdict is not None:
            raise BadFrame("more than a verdict")
        if frame.job != job:
            raise BadFrame(f"job {frame.job} in place of {job}")
        if frame.kind is Kind.WATCHED and not self.watched:
            self.watched = True
            return None
        if frame.kind not in (Kind.SCORE, Kind.ERROR):
            raise BadFrame(f"{frame.kind.name} out of turn")
        return frame

    def _tell(self) -> None:
        self.keeper.send(self.untold)
        self.untold = []


def _error(job: int, message: str) -> Frame:
    return Frame(Kind.ERROR, job, message=message)


def _fill_caches() -> None:
    """Let sympy import and cache now what each child would otherwise for itself."""
    if "sympy" in sys.modules:
        from sympy import simplify, symbols  # type: ignore[import-untyped]
        from sympy.parsing.sympy_parser import parse_expr  # type: ignore[import-untyped]

        simplify(parse_expr("x**2 + sqrt(2)/3 - sin(x)").diff(symbols("x")))


# A child.


def _judge_all(verifier: Judge, jobs: Jobs, start: int, line: int) -> None:
    """Judge one job whenever the keeper says so; does not return."""
    index = start

    def say(frame: Frame) -> None:
        os.write(line, frame.encode())

    def end() -> None:
        with suppress(OSError):
            os.close(line)  # the keeper need not wait until this memory is taken down
        os._exit(0)

    def refuse(message: str) -> None:
        try:
            say(_error(index, message))
        finally:
            end()

    audit = Audit(on_watched=lambda: say(Frame(Kind.WATCHED, index)), on_refused=refuse)
    audit.install()
    for index in range(start, len(jobs)):
        if os.read(line, 1) != _GO:
            break  # the keeper is gone
        verdict = _judge(verifier, *jobs[index], index)
        if _thread._count() and not audit.watched:  # a thread would outlast its answer
            audit.watched = True
            say(Frame(Kind.WATCHED, index))
        say(verdict)
        if audit.watched or verdict.kind is Kind.ERROR:
            break
    end()


def _judge(verifier: Judge, answer: str, problem: Any, index: int) -> Frame:
    try:
        score = verifier(answer, problem)
        if not isinstance(score, Real):
            name = type(score).__name__
            message = f"the verifier returned a {name}, expected a score from 0 to 1"
        else:
            value = float(score)
            if isfinite(value) and 0.0 <= value <= 1.0:
                return Frame(Kind.SCORE, index, value)
            message = f"the verifier returned {value}, expected a score from 0 to 1"
    except BaseException as error:  # SystemExit too: an answer may be `exit()`
        message = _describe(error)
    return _error(index, message)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # its __str__ may be the answer's
        return type(error).__name__
