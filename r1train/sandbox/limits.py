"""What a program may use, and what became of it on a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["python", "cpp"]

Status = Literal[
    "passed",
    "wrong",  # it ended, and what it gave is not what is expected
    "error",  # it ended by an exception, a signal, or a status other than 0; memory, too
    "timeout",  # of processor or of wall time
    "output",  # it wrote more than is read
    "not compiled",
    "not run",  # an earlier test decided
]


@dataclass(frozen=True)
class Limits:
    """Of one run of a program, which is one test case; a compiler has limits of its own."""

    cpu_seconds: float = 6.0
    """Processor time, of all its threads together."""
    memory_mb: int = 1024
    """Address space, in MiB; LiveCodeBench and Codeforces state 256 to 4096."""
    output_bytes: int = 8 << 20
    """Of standard output; what is written beyond ends the program."""
    scratch_mb: int = 16
    """Its /tmp, in MiB."""
    threads: int = 16
    """Threads; a program cannot start processes."""
    wall_seconds: float | None = None
    """Time that passes (unset: thrice the processor time and 5 s, for machines with other work)."""

    @property
    def deadline(self) -> float:
        """Seconds of wall time."""
        return 3 * self.cpu_seconds + 5 if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Result:
    """What became of a program on one test."""

    status: Status
    message: str = ""
    """The end of what it wrote to standard error, or what was expected and what came."""
    cpu_seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class SandboxError(RuntimeError):
    """The sandbox itself could not be made: no word on the program."""
