"""How model-written programs are run against test cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from r1train.config.schema import Bound, Positive, Section


@dataclass(frozen=True)
class CodeConfig(Section, section="rewards.code"):
    """The reward "code": programs in a sandbox, each test in a box of its own."""

    language: Literal["python", "cpp"] = "python"
    """Of programs for rows that say none (`verification_info.language`): Python 3 (the trainer's,
    with its standard library), or C++17 (g++)."""
    credit: Literal["all", "share"] = "all"
    """"all": 1 where every test is passed, else 0 (R1's rule); "share": the share of the tests that
    are passed, of which all are run."""
    cpu_seconds: Positive = 6.0
    """Processor time of a program on one test (LiveCodeBench: 6)."""
    memory_mb: Annotated[int, Bound(64, 1 << 20)] = 1024
    """Address space of a program, in MiB."""
