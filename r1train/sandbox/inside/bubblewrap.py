"""The same box by bubblewrap, which may make namespaces where an ordinary process may not: run as a
file, by `r1train/sandbox/box.py`.

Limits, filter and root are those of `jail.py`, but for three things: processes are refused by the
filter alone, a limit of threads follows from their stacks, and /tmp may hold programs.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
from jail import (  # type: ignore[import-not-found]
    DEVICES,
    Failed,
    Spec,
    die_with_parent,
    leave_pipes,
    main,
    report,
    set_limits,
    wait_for,
)


def monitor(spec: Spec) -> None:
    die_with_parent()
    if os.getppid() != spec["parent"]:
        raise Failed("the process that asked for the box is gone")
    bubblewrap = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if bubblewrap is None:
        raise Failed("bubblewrap (bwrap) is not installed")
    if not spec["filter"]:
        raise Failed("bubblewrap is used under a seccomp filter alone, which this machine has not")
    status, written = os.pipe()
    command = [bubblewrap, *arguments(spec, written), "--", *spec["argv"]]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        set_limits(spec)
        os.set_inheritable(written, True)
        os.execv(bubblewrap, command)
    os.close(written)
    leave_pipes()
    outcome = wait_for(child, time.monotonic() + spec["wall"])
    if "timeout" in outcome:
        os.kill(child, signal.SIGKILL)  # what is inside dies with it
    told = os.read(status, 4096).decode().splitlines()
    said = [json.loads(line) for line in told]
    if not any("child-pid" in line for line in said):
        raise Failed("bubblewrap cannot make the box")
    code = outcome.get("code", 0)
    report({"made": True} | outcome | ({"code": 128 - code} if code > 128 else {}))


def arguments(spec: Spec, status: int) -> list[str]:
    """Of bubblewrap. Files and the filter lie in memory, by descriptors that it inherits."""
    spaces = ("user", "pid", "net", "ipc", "uts", "cgroup-try")
    given = [f"--unshare-{space}" for space in spaces]
    given += ["--uid", "1", "--gid", "1", "--cap-drop", "ALL", "--hostname", "box"]
    given += ["--die-with-parent", "--new-session", "--clearenv", "--chdir", "/tmp"]
    for name, value in spec["environment"].items():
        given += ["--setenv", name, value]
    given += ["--size", str(spec["scratch"]), "--tmpfs", "/tmp"]
    for path, target in spec["links"].items():
        given += ["--symlink", target, path]
    for path in spec["folders"]:
        given += ["--ro-bind", path, path]
    for path in filter(os.path.isdir, spec["hidden"]):
        given += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for device in filter(os.path.exists, (f"/dev/{name}" for name in DEVICES)):
        given += ["--dev-bind", device, device]
    given += ["--symlink", "/tmp", "/dev/shm"]
    for name, content in spec["files"].items():
        file = str(in_memory(base64.b64decode(content)))
        given += ["--perms", "0555", "--ro-bind-data", file, f"/box/{name}"]
    filter_ = in_memory(base64.b64decode(spec["filter"]))
    return [*given, "--remount-ro", "/", "--seccomp", str(filter_), "--json-status-fd", str(status)]


def in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("box", 0)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


if __name__ == "__main__":
    main(monitor)
