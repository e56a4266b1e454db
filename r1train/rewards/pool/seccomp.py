"""A seccomp filter under which a Linux process can compute, read files and write to what is open.

It is a list of what is allowed: no new process or thread, no signal to others, no socket, no file
opened for writing, no tracing, and nothing that a later kernel brings. Refused calls fail with
EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# Numbers of (x86-64, AArch64); None where the architecture has no such call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # reading, and writing to open descriptors
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "fadvise64": (221, 223),
    # looking at the file system
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    # time, signals to itself, and locks
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "setitimer": (38, 103),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "futex": (202, 98),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    # who and where it is, chance, and the end
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Opening: (number, the argument that holds the flags). openat2 keeps them in memory: not allowed.
_OPEN = (((2, 1), (257, 2)), ((56, 2),))
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """The filter for this machine, made before the process forks that installs it."""

    def __init__(self) -> None:
        machine = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
        available = machine is not None and struct.calcsize("P") == 8
        instructions = _instructions(machine) if machine is not None and available else b""
        self.buffer = ctypes.create_string_buffer(instructions, len(instructions))
        self.program = _Program(len(instructions) // 8, ctypes.addressof(self.buffer))

    def install(self, libc: ctypes.CDLL) -> bool:
        """Whether it holds from here on; PR_SET_NO_NEW_PRIVS must be set.

        It does not on other processors and in kernels or containers without seccomp: there the
        audit hook and the limits are alone.
        """
        if not self.program.length:
            return False
        mode, none = ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_ulong(0)
        program = ctypes.byref(self.program)
        return bool(libc.prctl(_PR_SET_SECCOMP, mode, program, none, none) == 0)


def _instructions(machine: int) -> bytes:
    """BPF: each instruction is (code, jump if true, jump if false, operand)."""

    def instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, operand)

    allow, refuse = instruction(_RETURN, _ALLOW), instruction(_RETURN, _REFUSE)
    number, architecture, arguments = 0, 4, 16  # offsets in struct seccomp_data
    program = [
        instruction(_LOAD, architecture),
        instruction(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1),
        refuse,  # a call by another architecture's numbers (x32's have a bit that no entry has)
        instruction(_LOAD, number),
    ]
    for call, flags in _OPEN[machine]:
        program += [
            instruction(_JUMP_EQUAL, call, 0, 4),
            instruction(_LOAD, arguments + 8 * flags),
            instruction(_JUMP_SET, _WRITING, 0, 1),
            refuse,
            allow,
        ]
    for numbers in _ALLOWED.values():
        if numbers[machine] is not None:
            program += [instruction(_JUMP_EQUAL, numbers[machine] or 0, 0, 1), allow]
    return b"".join([*program, refuse])
