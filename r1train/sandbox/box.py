"""Runs programs in boxes: starts a jail for each, feeds them, reads what they write, ends them.

Whatever a program does, the call comes back at its deadline with at most as many bytes as it may
write, and nothing of the box is left.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from r1train.sandbox.limits import Limits, SandboxError
from r1train.sandbox.seccomp import compiler_filter, program_filter

_INSIDE = Path(__file__).parent / "inside"
JAILS = (_INSIDE / "jail.py", _INSIDE / "bubblewrap.py")
"""What can make a box, in the order in which they are tried (`isolation.py`)."""
STANDARD_ERROR_KEPT = 2000  # bytes of its end
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
}
_REPORTED = {"made": bool, "failed": str, "timeout": bool, "code": int, "cpu": float}
_KEPT = ("LD_LIBRARY_PATH",)  # of the environment, for the jail: the program has its own
_CHUNK = 1 << 16
_MOMENT = 2.0  # seconds
_SETUP_SECONDS = 15.0  # at most, for the jail to start on a busy machine, and to end
_STACK_BYTES = 64 << 20  # of the first thread: recursion is usual in such programs


@dataclass(frozen=True)
class Box:
    """A program and what it may see and use."""

    argv: tuple[str, ...]
    folders: tuple[str, ...]
    """Files and folders of this machine that it may read, by the same paths."""
    limits: Limits
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What lies in its /box."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Symbolic links by path, such as /lib to usr/lib."""
    hidden: tuple[str, ...] = ()
    """Folders inside `folders` that are empty for it."""
    processes: bool = False
    """It may start others, as a compiler does."""
    jail: Path | None = None
    """What makes it, of `JAILS` (unset: what `prefer` was told, which is the first at first)."""
    filtered: bool = True
    """Under a seccomp filter, where this machine has them; namespaces and limits hold without."""

    def spec(self) -> dict[str, Any]:
        """What the jail reads."""
        limits = self.limits
        filter_ = compiler_filter() if self.processes else program_filter()
        return {
            "argv": self.argv,
            "environment": ENVIRONMENT,
            "folders": self.folders,
            "links": dict(self.links),
            "hidden": self.hidden,
            "files": {n: base64.b64encode(data).decode() for n, data in self.files.items()},
            "filter": base64.b64encode(filter_ if self.filtered else b"").decode(),
            "cpu": ceil(limits.cpu_seconds),
            "wall": limits.deadline,
            "memory": limits.memory_mb << 20,
            "file": limits.scratch_mb << 20,
            "scratch": limits.scratch_mb << 20,
            "stack": min(_STACK_BYTES, limits.memory_mb << 18),
            "processes": limits.threads + 3,  # with the box's own, where they have the same user
            "parent": os.getpid(),
        }


@dataclass
class Outcome:
    """How a program ended, and what it wrote."""

    code: int | None = None
    """Its exit status, or minus the signal that ended it; None where it was ended from outside."""
    output: bytes = b""
    error: bytes = b""
    """The end of what it wrote to standard error."""
    cpu_seconds: float = 0.0
    timed_out: bool = False
    overflowed: bool = False
    """It wrote more than it may."""


_preferred = [JAILS[0]]


def prefer(jail: Path) -> None:
    """From here on boxes are made by it: the one that was found to work on this machine."""
    _preferred[:] = [jail]


def run_box(box: Box, given: bytes = b"") -> Outcome:
    """Runs the program with `given` as its standard input. Raises SandboxError."""
    with _Jail(box, subprocess.PIPE, subprocess.PIPE) as jail:
        jail.feed("stdin", given)
        _attend([jail])
        return jail.outcome()


def run_linked(first: Box, second: Box) -> tuple[Outcome, Outcome]:
    """Runs two programs, each of which reads what the other writes, until the first ends; the
    second, whose input ends with it, has a moment to do so too. Raises SandboxError."""
    with contextlib.ExitStack() as stack:
        ends = [open(end, "rb", closefd=True) for end in (*os.pipe(), *os.pipe())]  # noqa: SIM115
        with contextlib.ExitStack() as here:
            from_second, to_first, from_first, to_second = map(here.enter_context, ends)
            one = stack.enter_context(_Jail(first, from_second.fileno(), to_second.fileno()))
            other = stack.enter_context(_Jail(second, from_first.fileno(), to_first.fileno()))
        _attend([one, other])
        other.deadline = min(other.deadline, time.monotonic() + _MOMENT)
        _attend([other])
        return one.outcome(), other.outcome()


class _Jail:
    """The processes that hold a box, and the ends of its pipes that are here."""

    def __init__(self, box: Box, stdin: int, stdout: int) -> None:
        self.most = box.limits.output_bytes
        self.deadline = time.monotonic() + box.limits.deadline + _SETUP_SECONDS
        self.received = {"control": bytearray(), "stdout": bytearray(), "stderr": bytearray()}
        self.error_bytes = 0
        self.ended_here: str | None = None
        control, inside = socket.socketpair()
        with inside:
            try:
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        str(box.jail or _preferred[0]),
                        str(inside.fileno()),
                    ],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    pass_fds=(inside.fileno(),),
                    start_new_session=True,
                    cwd="/",
                    env={key: os.environ[key] for key in _KEPT if key in os.environ},
                )
            except OSError as error:
                control.close()
                raise SandboxError(f"no process can be started: {error.strerror}") from None
        files = {"control": control, "stdin": self.process.stdin, "stdout": self.process.stdout}
        files["stderr"] = self.process.stderr
        self.files: dict[str, Any] = {name: file for name, file in files.items() if file}
        self.sending: dict[str, memoryview] = {}
        for file in self.files.values():
            os.set_blocking(file.fileno(), False)
        self.feed("control", json.dumps(box.spec()).encode())

    def __enter__(self) -> _Jail:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in self.files.values():
            with contextlib.suppress(BrokenPipeError):
                file.close()
        self.process.wait()

    def feed(self, name: str, data: bytes) -> None:
        self.sending[name] = memoryview(data)

    def kill(self, reason: str = "") -> None:
        """Ends the monitor, the door and the init process, and with it whatever is in the box."""
        self.ended_here = self.ended_here or reason
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def events(self, name: str) -> int:
        """What is waited for at one of the ends."""
        read = selectors.EVENT_READ if name != "stdin" else 0
        return read | (selectors.EVENT_WRITE if name in self.sending else 0)

    def send(self, name: str) -> None:
        """Writes what an end takes; once that was all, says so."""
        data, file = self.sending[name], self.files[name]
        try:
            self.sending[name] = data = data[os.write(file.fileno(), data[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            data = memoryview(b"")
        if not data:
            del self.sending[name]
            if name == "stdin":
                self.files.pop(name).close()
            else:
                with contextlib.suppress(OSError):
                    file.shutdown(socket.SHUT_WR)

    def receive(self, name: str) -> None:
        """Reads what there is; no more than the program may write is kept."""
        try:
            data = os.read(self.files[name].fileno(), _CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.files.pop(name).close()
            return
        kept = self.received[name]
        kept += data
        if name == "stderr":
            self.error_bytes += len(data)
            del kept[:-STANDARD_ERROR_KEPT]
        if (name == "stdout" and len(kept) > self.most) or self.error_bytes > self.most:
            del kept[self.most :]
            self.kill("output")

    @property
    def over(self) -> bool:
        """Whether the box is gone and all that it wrote is here."""
        return not self.files.keys() & self.received.keys()

    @property
    def ended(self) -> bool:
        """Whether it has told how the program ended."""
        return not self.reports().keys().isdisjoint({"code", "timeout", "failed"})

    def reports(self) -> dict[str, Any]:
        """What its processes said."""
        reports: dict[str, Any] = {}
        for line in self.received["control"].decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # cut off where it was killed
                if _is_report(said := json.loads(line)):
                    reports |= said
        return reports

    @property
    def failure(self) -> str | None:
        """Why the box could not be made; None where it was."""
        reports = self.reports()
        if "failed" in reports:
            said = self.received["stderr"].decode(errors="replace").strip()
            return f"{reports['failed']}{said and ': '}{said}"
        if not reports and not self.ended_here:
            return f"its process failed: {self.received['stderr'].decode(errors='replace')}"
        return None

    def outcome(self) -> Outcome:
        """What became of the program. Raises SandboxError where it was never run."""
        if (failure := self.failure) is not None:
            raise SandboxError(failure)
        reports = self.reports()
        code = reports.get("code", -signal.SIGKILL)
        return Outcome(
            code=None if self.ended_here or "timeout" in reports else code,
            output=bytes(self.received["stdout"]),
            error=bytes(self.received["stderr"]),
            cpu_seconds=reports.get("cpu", 0.0),
            timed_out=self.ended_here == "time" or "timeout" in reports,
            overflowed=self.ended_here == "output",
        )


def _is_report(said: object) -> bool:
    """Whether it is what a jail says of a box."""
    return isinstance(said, dict) and all(type(v) is _REPORTED.get(k) for k, v in said.items())


def _attend(jails: Sequence[_Jail]) -> None:
    """Moves data in and out until the first of the boxes is over, or its time is up."""
    first = jails[0]
    while not first.over:
        with selectors.DefaultSelector() as selector:
            for jail in jails:
                for name, file in jail.files.items():
                    if events := jail.events(name):
                        selector.register(file, events, (jail, name))
            ready = selector.select(max(0.01, first.deadline - time.monotonic()))
        for key, events in ready:
            jail, name = key.data
            if events & selectors.EVENT_READ and name != "stdin":
                jail.receive(name)
            if events & selectors.EVENT_WRITE and name in jail.files and name in jail.sending:
                jail.send(name)
        late = time.monotonic() - first.deadline  # what has come is read before anybody is killed
        if (late > 0 and not ready) or (late > _SETUP_SECONDS and not first.ended):
            _end_late(jails)


def _end_late(jails: Sequence[_Jail]) -> None:
    """Kills boxes whose time is up, and gives them a while to be gone. Raises SandboxError where
    they are not."""
    now = time.monotonic()
    for jail in jails:
        if jail.ended_here is None:
            jail.kill("time")
            jail.deadline = now + _SETUP_SECONDS
        elif now > jail.deadline:
            raise SandboxError("its processes do not end")
