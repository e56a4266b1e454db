"""Becomes a program that can harm nobody: run as a file, by `r1train/sandbox/box.py`.

It imports nothing but the standard library, has one thread, and forks thrice:

    monitor   outside; maps the user of the box, waits
    └ door    in new namespaces: user, mounts, PIDs, network, IPC, host name, control groups
      └ init  PID 1; makes the root, ends the box when the program ends or its time is up
        └ the program, without privileges, under limits and a seccomp filter

Killing the init process ends whatever is in the box, and each of them dies with its parent. The
program has its three pipes and no other descriptor. What became of it is told, as lines of JSON, by
a socket that it never has.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Spec = dict[str, Any]  # what `Box.spec` says
LIBC = ctypes.CDLL(None, use_errno=True)
CONTROL = 3  # the descriptor by which the box is asked for, and what became of it is told
USER = 1  # in the box; outside it is nobody's, or that of an ordinary user
ROOT = "/tmp"  # where the root is put together, in a namespace of its own

NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS = 1, 2, 4, 8  # MOUNT_ATTR_*
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, O_CLOEXEC, MOVE_FROM_DESCRIPTOR, MNT_DETACH = 1, 0o2000000, 4, 2
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # alike on all architectures
PIVOT_ROOT, CAPSET, KEYCTL = {"x86_64": (155, 126, 250), "aarch64": (41, 91, 219)}.get(
    os.uname().machine, (-1, -1, -1)
)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 38, 22
PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 24, 28, 47
SECURE = 0x2F  # no privileges for user 0, none kept over a change of user, none ambient; locked
DEVICES = ("null", "zero", "full", "random", "urandom")


class Failed(Exception):
    """The box cannot be made; the text says which step failed, and why."""


def main(step: Callable[[Spec], None]) -> None:
    """Takes a spec from the descriptor that the command line names, and does what it asks for."""
    given = int(sys.argv[1])  # of any size: the trainer may have thousands of files open
    os.dup2(given, CONTROL)
    os.set_inheritable(CONTROL, False)
    if given != CONTROL:
        os.close(given)
    close_others()
    with open(CONTROL, closefd=False) as file:
        spec = json.load(file)
    guarded(step, spec)


def guarded(step: Callable[[Spec], None], spec: Spec) -> None:
    """Runs a process's part to its end. No exception leaves it: there is nobody above to see it."""
    code = 1
    try:
        step(spec)
        code = 0
    except (Failed, OSError, ValueError) as error:
        report({"failed": str(error)})
    finally:
        os._exit(code)


def monitor(spec: Spec) -> None:
    die_with_parent()
    if os.getppid() != spec["parent"]:
        raise Failed("the process that asked for the box is gone")
    with contextlib.suppress(OSError):  # of all processes, the first to go where memory is short
        write("/proc/self/oom_score_adj", "1000")
    LIBC.syscall(KEYCTL, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING: not that of the trainer
    unshared, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(unshared[0])
        os.close(mapped[1])
        guarded(lambda spec: door(spec, unshared[1], mapped[0]), spec)
    for descriptor in (unshared[1], mapped[0]):
        os.close(descriptor)
    if os.read(unshared[0], 1):  # else it has reported why
        map_user(child, os.geteuid(), os.getegid())
        os.write(mapped[1], b"1")
    leave_pipes()
    os.waitpid(child, 0)


def door(spec: Spec, unshared: int, mapped: int) -> None:
    die_with_parent()
    flags = sum(NAMESPACES.values())
    if LIBC.unshare(ctypes.c_int(flags)) != 0:
        raise Failed(f"unshare: {os.strerror(ctypes.get_errno())}")
    os.write(unshared, b"1")
    if not os.read(mapped, 1):
        return
    os.close(unshared)
    os.close(mapped)
    child = os.fork()
    if child == 0:
        guarded(init, spec)
    leave_pipes()
    os.waitpid(child, 0)


def map_user(child: int, user: int, group: int) -> None:
    """An ordinary user stays who they are. Root is there to find files, and the program is run as a
    user of its own who owns nothing: limits of processes do not count for root's own."""
    if user != 0:
        choices = [(f"{USER} {user} 1\n", f"{USER} {group} 1\n")]
    else:
        own = os.getpid()
        # Neither root's nor systemd's ranges have the first; a container's may not have it either.
        strangers = (0x70000000 + own, 65534 - own % 4096)
        choices = [(f"0 0 1\n{USER} {one} 1\n",) * 2 for one in strangers]
    for users, groups in choices:
        try:
            if user != 0:
                write(f"/proc/{child}/setgroups", "deny")
            write(f"/proc/{child}/gid_map", groups)
            write(f"/proc/{child}/uid_map", users)
            return
        except OSError as error:
            reason = error
    raise Failed(f"uid_map: {reason.strerror}")


def init(spec: Spec) -> None:
    """PID 1 of the box: signals from inside do not reach it, and its end is that of all."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.geteuid() == 0:
        os.setgroups([])
    LIBC.sethostname(b"box", 3)
    with contextlib.suppress(OSError):  # where /proc is read-only, the filter alone refuses these
        write("/proc/sys/user/max_user_namespaces", "0")
    make_root(spec)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    deadline = time.monotonic() + spec["wall"]
    report({"made": True})
    child = os.fork()
    if child == 0:
        guarded(program, spec)
    leave_pipes()
    report(wait_for(child, deadline))


def wait_for(child: int, deadline: float) -> dict[str, Any]:
    """How the child ended, or that it did not in time. Orphans are reaped on the way."""
    while True:
        ended, code, usage = os.wait4(-1, os.WNOHANG)
        if ended == child:
            return account(code, usage)
        left = deadline - time.monotonic()
        if not ended and left <= 0:
            return {"timeout": True}
        if not ended:
            signal.sigtimedwait([signal.SIGCHLD], left)


def account(code: int, usage: resource.struct_rusage) -> dict[str, Any]:
    return {
        "code": os.waitstatus_to_exitcode(code),
        "cpu": usage.ru_utime + usage.ru_stime,
    }


def program(spec: Spec) -> None:
    os.setsid()
    close_others()  # before the limits, by which it knows how many there may be
    set_limits(spec)
    resource.setrlimit(resource.RLIMIT_NPROC, (spec["processes"],) * 2)
    drop_privileges()
    os.chdir("/tmp")
    for which in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(which, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if spec["filter"]:
        install(base64.b64decode(spec["filter"]))
    try:
        os.execve(spec["argv"][0], spec["argv"], spec["environment"])
    except OSError as error:
        raise Failed(f"{spec['argv'][0]}: {error.strerror}") from None


def set_limits(spec: Spec) -> None:
    limits = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, spec["cpu"]),
        (resource.RLIMIT_AS, spec["memory"]),
        (resource.RLIMIT_FSIZE, spec["file"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, spec["stack"]),
    )
    for which, value in limits:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        more = 1 if which == resource.RLIMIT_CPU else 0  # SIGXCPU, and SIGKILL a second later
        resource.setrlimit(which, (value, value + more))


def drop_privileges() -> None:
    prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # beyond the last that this kernel knows
    prctl(PR_SET_SECUREBITS, SECURE)
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of itself
    if LIBC.syscall(CAPSET, header, (ctypes.c_uint32 * 6)()) != 0:
        raise Failed(f"capset: {os.strerror(ctypes.get_errno())}")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def install(instructions: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    filter_ = Program(len(instructions) // 8, ctypes.addressof(buffer))
    none = ctypes.c_ulong(0)
    if LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(filter_), none, none) != 0:
        raise Failed(f"seccomp: {os.strerror(ctypes.get_errno())}")


def make_root(spec: Spec) -> None:
    """A root of a few folders of this machine, read-only, a scratch folder and five devices."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    trees = {path: tree(path, NO_SUID | NO_DEVICES) for path in spec["folders"]}
    for name in filter(lambda name: os.path.exists(f"/dev/{name}"), DEVICES):
        trees[f"/dev/{name}"] = tree(f"/dev/{name}", NO_SUID | NO_PROGRAMS)
    size = 1 << 20
    size += sum(len(content) for content in spec["files"].values())
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=1000,mode=755")
    os.chdir(ROOT)
    os.mkdir("tmp")  # before the folders are attached: some may lie in it
    options = f"size={spec['scratch']},nr_inodes=4096,mode=777"
    mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    for path, target in spec["links"].items():
        os.makedirs(os.path.dirname(f".{path}"), exist_ok=True)
        os.symlink(target, f".{path}")
    for path, (descriptor, is_folder) in trees.items():
        attach(descriptor, f".{path}", is_folder)
    for path in spec["hidden"]:
        if os.path.isdir(f".{path}"):
            mount(
                "tmpfs", f".{path}", "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,nr_inodes=2,mode=555"
            )
    os.mkdir("box")
    for name, content in spec["files"].items():
        with open(f"box/{name}", "xb") as file:
            file.write(base64.b64decode(content))
        os.chmod(f"box/{name}", 0o555)
    os.symlink("/tmp", "dev/shm")
    call("pivot_root", LIBC.syscall(PIVOT_ROOT, b".", b"."))
    call("umount", LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")
    attribute(AT_FDCWD, b"/", 0, READ_ONLY | NO_SUID | NO_DEVICES)


def tree(path: str, attributes: int) -> tuple[int, bool]:
    """A read-only copy of the mounts at a path, which lies nowhere yet, and whether it is a
    folder."""
    flags = OPEN_TREE_CLONE | O_CLOEXEC | AT_RECURSIVE
    descriptor = LIBC.syscall(OPEN_TREE, AT_FDCWD, path.encode(), flags)
    call(f"open_tree {path}", descriptor)
    attribute(descriptor, b"", AT_EMPTY_PATH | AT_RECURSIVE, READ_ONLY | attributes)
    return descriptor, os.path.isdir(path)


def attach(descriptor: int, target: str, is_folder: bool) -> None:
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    arguments = (descriptor, b"", AT_FDCWD, target.encode(), MOVE_FROM_DESCRIPTOR)
    call(f"move_mount {target}", LIBC.syscall(MOVE_MOUNT, *arguments))
    os.close(descriptor)


def attribute(descriptor: int, path: bytes, flags: int, attributes: int) -> None:
    values = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # struct mount_attr
    call("mount_setattr", LIBC.syscall(MOUNT_SETATTR, descriptor, path, flags, values, 32))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags))
    call(f"mount {target}", LIBC.mount(*arguments, options.encode()))


def prctl(option: int, value: int) -> None:
    none = ctypes.c_ulong(0)
    call(f"prctl({option})", LIBC.prctl(option, ctypes.c_ulong(value), none, none, none))


def call(what: str, result: int) -> None:
    if result < 0:
        raise Failed(f"{what}: {os.strerror(ctypes.get_errno())}")


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def close_others() -> None:
    """Leaves the three pipes and `CONTROL`, which ends where a program is begun."""
    os.closerange(CONTROL + 1, os.sysconf("SC_OPEN_MAX"))


def leave_pipes() -> None:
    """The program alone holds its ends, so that whoever reads sees when it closes them."""
    descriptor = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def report(outcome: dict[str, Any]) -> None:
    data = memoryview(json.dumps(outcome).encode() + b"\n")
    while data:
        data = data[os.write(CONTROL, data) :]


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(monitor)
