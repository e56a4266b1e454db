"""What the operating system holds a process to that judges answers.

Everywhere: limits of memory, processor time, files and processes, and a session of its own. On
Linux too: it dies with the process that forked it, gains no privileges, cannot be traced or dumped,
and a seccomp filter (`r1train/sandbox/seccomp.py`) leaves it the system calls of a computation.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from r1train.sandbox.seccomp import Filter, verifier_filter

MEMORY_BYTES = 4 << 30  # beyond what is there before the first answer
_OPEN_FILES = 64
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


class Limits:
    """Prepared once, so that taking them on costs a forked process little."""

    def __init__(self) -> None:
        self.linux = sys.platform == "linux"
        if self.linux:
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.filter = Filter(verifier_filter())

    def take_on(self, parent: int, cpu_seconds: int) -> None:
        """Give up, for good, what a verifier does not need. `parent` forked this process."""
        os.setsid()  # a group to be killed as a whole, with no terminal to type into
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_FSIZE, 0)
        _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
        _limit(resource.RLIMIT_NPROC, 0)  # root is exempt: there the hook and seccomp refuse
        _limit(resource.RLIMIT_CPU, cpu_seconds)  # the last resort, where nobody is left to kill it
        if not self.linux:
            return  # macOS ignores RLIMIT_AS, and has none of what follows
        limit_memory()
        _die_with(self.libc, parent)
        _prctl(self.libc, _PR_SET_DUMPABLE, 0)
        _prctl(self.libc, _PR_SET_NO_NEW_PRIVS, 1)
        self.filter.install(self.libc)


def limit_memory() -> None:
    """At most `MEMORY_BYTES` more than now; nothing on macOS, which ignores RLIMIT_AS."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as pages:
            now = int(pages.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, now + MEMORY_BYTES)


def die_with(parent: int, by: int = signal.SIGKILL) -> None:
    """This process has that signal when the thread of `parent` ends that started it; on Linux
    alone."""
    if sys.platform == "linux":
        _die_with(ctypes.CDLL(None, use_errno=True), parent, by)


def _die_with(libc: ctypes.CDLL, parent: int, by: int = signal.SIGKILL) -> None:
    _prctl(libc, _PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(1)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    none = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), none, none, none) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))
