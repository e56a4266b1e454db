"""Programs in boxes, as the tests of the sandbox run them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from r1train.config.schema import ConfigError
from r1train.sandbox.box import Outcome, run_box
from r1train.sandbox.isolation import require_isolation
from r1train.sandbox.languages import python_box
from r1train.sandbox.limits import Limits

QUICK = Limits(
    cpu_seconds=1, wall_seconds=20, memory_mb=256, output_bytes=1 << 16, scratch_mb=2, threads=8
)
HEAD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ctypes.CDLL(None).syscall.restype = ctypes.c_long

def harm(what):
    print(what, flush=True)

def tried(what, call):
    try:
        result = call()
    except OSError:
        return
    if not (isinstance(result, int) and result < 0):
        harm(f"{what}: {result!r}")
"""
"""Each attempt that succeeds is a line of output; at its end a program says so."""
ENDED = b"ended\n"


@cache
def _refusal() -> str:
    try:
        require_isolation("python")
    except ConfigError as error:
        return str(error)
    return ""


boxed = pytest.mark.skipif(bool(_refusal()), reason=_refusal() or "boxes can be made")
filters = pytest.mark.parametrize("filtered", [True, False], ids=["seccomp", "no-seccomp"])


def source_of(program: str) -> str:
    return HEAD + textwrap.dedent(program) + "\nprint('ended')\n"


def attempt(
    program: str,
    *,
    filtered: bool = True,
    given: str = "",
    limits: Limits = QUICK,
    name: str = "program.py",
    **changes: object,
) -> Outcome:
    """Runs what `source_of` makes of a program in a box."""
    box = python_box({name: source_of(program).encode()}, limits, name)
    return run_box(replace(box, filtered=filtered, **changes), given.encode())


def outside(program: str, given: str = "", environment: Mapping[str, str] | None = None) -> bytes:
    """What the same program writes where nothing contains it: the attempt is a real one."""
    command = [sys.executable, "-c", source_of(program)]
    run = subprocess.run(command, input=given.encode(), capture_output=True, timeout=20)
    return run.stdout


def unique_name() -> str:
    """Of a program, by which its processes are found."""
    return f"box_{uuid.uuid4().hex}.py"


def survivors(name: str) -> list[int]:
    """Processes of this machine that have the name in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.encode() in command:
                found.append(int(entry.name))
    return found
