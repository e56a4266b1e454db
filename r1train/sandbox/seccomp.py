"""Seccomp filters: programs of BPF that say which system calls a process has left.

They are lists of what is allowed (`syscalls.py`); a call may depend on an argument. What is
refused fails with EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from r1train.sandbox.syscalls import (
    COMPUTATION,
    FIRST_RECENT,
    NUMBERS,
    PROCESSES,
    PROGRAM,
)

_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


@dataclass(frozen=True)
class Condition:
    """What the lower 32 bits of an argument must be for a call to be allowed."""

    argument: int
    rule: Literal["one of", "masked"]
    values: tuple[int, ...]
    """Accepted values ("one of"); or a mask, and what its bits must be ("masked")."""


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020080  # all namespaces, time's too
_READING = {
    "open": Condition(1, "masked", (_WRITING, 0)),
    "openat": Condition(2, "masked", (_WRITING, 0)),
}
_THREADS = Condition(0, "masked", (_CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD))
_PROCESSES = Condition(0, "masked", (_CLONE_NEW, 0))
_OWN_FILES = {
    "prlimit64": Condition(0, "one of", (0,)),  # of itself
    "prctl": Condition(0, "one of", (15, 16, 0x53564D41)),  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": Condition(1, "one of", (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no lock, lease or larger pipe
    "fcntl": Condition(1, "one of", (0, 1, 2, 3, 4, 1030)),
}


@cache
def verifier_filter() -> bytes:
    """To compute, read files and write to what is open: no process, thread, socket or signal to
    others. Empty where this machine has no such filters."""
    return assemble(COMPUTATION, _READING)


@cache
def program_filter() -> bytes:
    """To compute, with threads, and files in a root that mounts protect: no process, no socket."""
    return assemble(PROGRAM, _OWN_FILES | {"clone": _THREADS})


@cache
def compiler_filter() -> bytes:
    """As a program, with processes, but in no new namespace."""
    return assemble(PROCESSES, _OWN_FILES | {"clone": _PROCESSES})


def assemble(allowed: Iterable[str], conditions: Mapping[str, Condition]) -> bytes:
    """BPF for this machine: instructions of 8 bytes; empty on processors that are not known."""
    machine = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
    if machine is None or struct.calcsize("P") != 8:
        return b""
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1),
        _refuse(errno.EPERM),  # by another architecture's numbers
        _instruction(_LOAD, _NUMBER),
    ]
    for name in allowed:
        number = NUMBERS[name][machine]
        if number is not None:
            then = (
                _test(conditions[name]) if name in conditions else [_instruction(_RETURN, _ALLOW)]
            )
            program += [_instruction(_JUMP_EQUAL, number, 0, len(then)), *then]
    program += [
        _instruction(_JUMP_AT_LEAST, 0x40000000, 1),  # x32's numbers
        _instruction(_JUMP_AT_LEAST, FIRST_RECENT, 1),
        _refuse(errno.EPERM),
        _refuse(errno.ENOSYS),
    ]
    return b"".join(program)


def _test(condition: Condition) -> list[bytes]:
    """Instructions that end the filter, one way or the other."""
    load = _instruction(_LOAD, _ARGUMENTS + 8 * condition.argument)
    allow, refuse = _instruction(_RETURN, _ALLOW), _refuse(errno.EPERM)
    masks: list[bytes] = []
    values = list(condition.values)
    if condition.rule == "masked":
        masks = [_instruction(_AND, values.pop(0))]
    jumps = [
        _instruction(_JUMP_EQUAL, value, len(values) - place) for place, value in enumerate(values)
    ]
    return [load, *masks, *jumps, refuse, allow]


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """(code, jump if true, jump if false, operand)."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """A filter in memory, made before the process forks that installs it."""

    def __init__(self, instructions: bytes) -> None:
        self.buffer = ctypes.create_string_buffer(instructions, len(instructions))
        self.program = _Program(len(instructions) // 8, ctypes.addressof(self.buffer))

    def install(self, libc: ctypes.CDLL) -> bool:
        """Whether it holds from here on; PR_SET_NO_NEW_PRIVS must be set.

        It does not on other processors and in kernels or containers without seccomp.
        """
        if not self.program.length:
            return False
        mode, none = ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_ulong(0)
        program = ctypes.byref(self.program)
        return bool(libc.prctl(_PR_SET_SECCOMP, mode, program, none, none) == 0)
