"""Whether this machine can contain a program; where not, nothing is run."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.sandbox.box import JAILS, prefer, run_box
from r1train.sandbox.languages import compiler_path, python_box
from r1train.sandbox.limits import Language, Limits, SandboxError

_SETTINGS = (  # what keeps users from making namespaces: value that does, and the remedy
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def require_isolation(language: Language) -> None:
    """Raises ConfigError, with the remedy, where programs of a language cannot be contained."""
    if language == "cpp" and compiler_path() is None:
        raise ConfigError("C++ programs need g++, which is not installed: install it (apt: g++)")
    if (reason := why_not()) is not None:
        raise ConfigError(
            f"model-written programs cannot be contained here, so none is run: {reason}"
        )


@cache
def why_not() -> str | None:
    """What fails, and what to do; None where a program was run in a box. From then on boxes are
    made in the way that was found: namespaces of our own, or bubblewrap's."""
    if sys.platform != "linux":
        return f"namespaces are Linux's, and this is {sys.platform}: use a Linux machine"
    reasons = []
    for jail in JAILS:
        if (reason := _failure(jail)) is None:
            prefer(jail)
            return None
        reasons.append(reason)
    return f"{'; '.join(reasons)}; {_remedy()}"


def _failure(jail: Path) -> str | None:
    box = python_box({"program.py": b"print(input())"}, Limits(cpu_seconds=10))
    try:
        outcome = run_box(replace(box, jail=jail), b"contained")
    except SandboxError as error:
        return str(error)
    if outcome.output != b"contained\n":
        return f"a first program failed: {outcome.error.decode(errors='replace')}"
    return None


def _remedy() -> str:
    for setting, value, remedy in _SETTINGS:
        path = Path("/proc/sys") / setting
        if path.exists() and path.read_text().strip() == value:
            return f"this machine refuses user namespaces: {remedy}, or install bubblewrap"
    return (
        "user namespaces are needed, of Linux 5.14 or later or by bubblewrap, which can be "
        "installed; in Docker: --security-opt seccomp=unconfined --security-opt "
        "apparmor=unconfined, or --privileged"
    )
