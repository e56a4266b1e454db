"""Escape attempts: nothing outside a box is read, written, reached or signalled from inside.

Each program does what would be harmful, by every way that comes to mind, and prints a line for
each that succeeds. Most are tried under a seccomp filter and without: each layer holds alone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.r1train.boxes import (
    ENDED,
    QUICK,
    attempt,
    boxed,
    filters,
    outside,
    survivors,
    unique_name,
)

pytestmark = boxed

READS = """
for path in sys.stdin.read().split():
    up = "../" * 12 + path.lstrip("/")
    os.path.lexists("/tmp/link") and os.unlink("/tmp/link")
    tried("symlink", lambda: os.symlink(path, "/tmp/link"))
    ways = [path, up, "/box/" + up, "/dev/shm/" + up, "/usr/lib/" + up, "/tmp/link"]
    ways += [f"/proc/{who}/{what}{path}" for who in ("1", "self") for what in ("root", "cwd")]
    for way in ways:
        try:
            with open(way, "rb") as file:
                harm((way, file.read(20)))
        except OSError:
            pass
"""


def secrets(folder: Path) -> list[Path]:
    """Files of this machine that no program should see."""
    own = folder / "secret.txt"
    own.write_text("a secret")
    here = [own, Path(__file__), Path.home() / ".profile", Path("/etc/passwd"), Path("/etc/shadow")]
    return [path for path in here if path.exists()]


@filters
def test_files_outside_are_not_read(filtered, tmp_path):
    paths = "\n".join(map(str, secrets(tmp_path)))
    program = READS.replace('tried("symlink", ', "(").replace("/tmp/link", str(tmp_path / "link"))
    assert b"a secret" in outside(program, paths)
    outcome = attempt(READS, given=paths, filtered=filtered)
    assert outcome.output == b"symlink: None\n" * len(paths.split("\n")) + ENDED


@filters
def test_files_outside_are_not_written(filtered, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    outcome = attempt(
        """
        victim = input()
        library = os.__file__
        files = [victim, library, "/box/program.py", "/usr/lib/x", "/lib/x", "/x", "/box/x"]
        files += ["/dev/x", "/etc/x", "/etc/ld.so.cache", "/root/x", "/home/x", "/var/x", "/bin/sh"]
        files += [f"/proc/1/root{victim}", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"]
        for path in files:
            tried(("write", path), lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
            tried(("append", path), lambda: os.close(os.open(path, os.O_RDWR | os.O_APPEND)))
            tried(("truncate", path), lambda: os.truncate(path, 0))
            tried(("unlink", path), lambda: os.unlink(path))
            tried(("rename", path), lambda: os.rename(path, path + "2"))
            tried(("replace", path), lambda: os.rename("/tmp", path))
            tried(("chmod", path), lambda: os.chmod(path, 0o777))
            tried(("times", path), lambda: os.utime(path))
            tried(("link", path), lambda: os.link(path, "/tmp/hard"))
        for path in ["/dev/null", "/dev/zero", "/box", "/tmp", "/usr", "/"]:
            tried(("unlink", path), lambda: os.unlink(path))
            tried(("rmdir", path), lambda: os.rmdir(path))
            tried(("mkdir", path), lambda: path != "/tmp" and os.mkdir(path + "/x") or -1)
        """,
        given=str(victim),
        filtered=filtered,
    )
    assert outcome.output == ENDED, outcome.error
    assert victim.read_text() == "as it was"


@filters
def test_there_is_no_proc_no_sys_and_no_device_but_five(filtered):
    outcome = attempt(
        """
        for path in ("/proc", "/sys", "/dev/tty", "/dev/ptmx", "/dev/mem", "/dev/kmsg"):
            os.path.lexists(path) and harm(path)
        print(sorted(os.listdir("/dev")), os.listdir("/tmp"), os.listdir("/dev/shm"))
        print(sorted(os.listdir("/box")), dict(os.environ).keys() - {"LC_CTYPE"})
        """,
        filtered=filtered,
    )
    devices, box, ended = outcome.output.decode().splitlines()
    assert devices == "['full', 'null', 'random', 'shm', 'urandom', 'zero'] [] []"
    assert box.startswith("['program.py']")
    assert set(eval(box.partition(" ")[2])) == {
        "HOME",
        "LANG",
        "PATH",
        "PYTHONHASHSEED",
        "PYTHONUTF8",
    }
    assert ended == "ended"


@filters
def test_shared_memory_is_its_own(filtered):
    name = f"box-{uuid.uuid4().hex}"
    shared = Path("/dev/shm") / name
    try:
        shared.write_text("a secret")
        program = f"""
        tried("open", lambda: open("/dev/shm/{name}").read())
        shm = libc.shmget(4711, 4096, 0o1600)
        shm >= 0 and harm("System V, of its own") 
        """
        outcome = attempt(program, filtered=filtered)
    finally:
        shared.unlink()
    own = [] if filtered else ["System V, of its own"]  # in its IPC namespace, which ends with it
    assert outcome.output.decode().splitlines() == [*own, "ended"]


CONNECTS = """
import socket
port, path = sys.stdin.read().split()
def connect(family, kind, address):
    with socket.socket(family, kind) as end:
        end.settimeout(0.3)
        end.connect(address)
        kind == socket.SOCK_DGRAM and end.send(b"x")
for host in ("127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "8.8.8.8"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        tried((host, kind), lambda: connect(socket.AF_INET, kind, (host, int(port))))
tried("::1", lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(port))))
tried("path", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, path))
tried("abstract", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + path))
tried("name", lambda: socket.getaddrinfo("localhost.example", 80))
tried("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
tried("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
"""


@filters
def test_nothing_is_reached_by_the_network(filtered, tmp_path):
    path = str(tmp_path / "s")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(path)
        abstract.bind("\0" + path)
        for end in (unix, abstract):
            end.listen()
        given = f"{server.getsockname()[1]} {path}"
        reached = outside(CONNECTS.replace("8.8.8.8", "127.0.0.2"), given).decode()
        assert all(f"{way}" in reached for way in ("127.0.0.1", "path", "abstract"))
        outcome = attempt(CONNECTS, given=given, filtered=filtered)
    assert outcome.output == ENDED, outcome.error


def test_no_socket_is_made_at_all():
    outcome = attempt(
        """
        import socket
        for family in range(46):
            for kind in (1, 2, 3, 5):
                tried(("socket", family, kind), lambda: libc.socket(family, kind, 0))
        tried("pair", socket.socketpair)
        """
    )
    assert outcome.output == ENDED


@filters
def test_a_netlink_socket_shows_an_empty_network(filtered):
    outcome = attempt(
        """
        import socket
        try:
            print([name for _, name in socket.if_nameindex()])
            print(open("/sys/class/net").read())
        except OSError:
            pass
        """,
        filtered=filtered,
    )
    assert outcome.output in (ENDED, b"['lo']\n" + ENDED)


@filters
def test_signals_stay_inside(filtered):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sentinel:
        outcome = attempt(
            """
            pids = [int(pid) for pid in sys.stdin.read().split()]
            for pid in (*pids, 1, -1):
                for number in range(1, 65):
                    try:
                        os.kill(pid, number)
                    except OSError:
                        pass
            """,
            given=f"{sentinel.pid} {os.getpid()} {os.getppid()}",
            filtered=filtered,
        )
        assert sentinel.poll() is None
        sentinel.kill()
    assert (outcome.code, outcome.output) == (0, ENDED)  # its init process goes on, too


@filters
def test_nothing_outlives_the_program(filtered):
    """A grandchild that is nobody's, in a session of its own, and threads that sleep."""
    name = unique_name()
    start = time.monotonic()
    outcome = attempt(
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        try:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for descriptor in (0, 1, 2):
                        os.close(descriptor)
                    while True:
                        time.sleep(60)
                os._exit(0)
            os.wait()
            print("forked")
        except OSError:
            pass
        """,
        filtered=filtered,
        name=name,
    )
    assert outcome.output == (ENDED if filtered else b"forked\n" + ENDED)
    assert outcome.code == 0
    assert time.monotonic() - start < QUICK.deadline
    assert survivors(name) == []


def test_a_box_ends_with_the_process_that_made_it(tmp_path):
    name = unique_name()
    own = f"""
from r1train.sandbox.cases import StdioCase
from r1train.sandbox.judge import run_tests
from r1train.sandbox.languages import python_box
from r1train.sandbox.limits import Limits
print("starting", flush=True)
run_box(python_box({{{name!r}: b"import time; time.sleep(50)"}}, Limits(), {name!r}))
"""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", own], env=environment) as process:
        try:
            _until(lambda: survivors(name))
        finally:
            process.kill()
    _until(lambda: not survivors(name))


def _until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came to be")


@filters
def test_no_descriptor_is_inherited_and_what_is_written_to_any_is_no_verdict(filtered):
    inherited = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        outcome = attempt(
            r"""
            verdict = b'{"made": true}\n{"code": 0, "cpu": 0.0, "passed": true}\n'
            for descriptor in range(3, 4096):
                try:
                    os.fstat(descriptor)
                    harm(("open", descriptor))
                    os.write(descriptor, verdict)
                except OSError:
                    pass
            os.write(1, verdict)
            os.write(2, verdict)
            sys.exit(3)
            """,
            filtered=filtered,
        )
    finally:
        os.close(inherited)
    assert outcome.code == 3
    assert outcome.output.startswith(b'{"made"')


@filters
def test_a_trainer_with_many_open_files_gives_none_away(filtered):
    """The socket by which a box tells what became of a program then has a number above 1,300."""
    with contextlib.ExitStack() as opened:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1300):
            opened.enter_context(open(__file__))
        outcome = attempt(
            r"""
            for descriptor in range(3, 4096):
                forged = b'{"failed": "forged"}\n'
                tried(("write", descriptor), lambda: harm(os.write(descriptor, forged)))
            """,
            filtered=filtered,
        )
    assert (outcome.code, outcome.output) == (0, ENDED)


def test_only_what_a_jail_says_is_a_report(tmp_path):
    jail = tmp_path / "jail.py"
    said = (
        r'[]\n1\nnull\n{"code": "0"}\n{"passed": true}\n{"code": 0, "more": 1}\n\xff\n{"code": 7}'
    )
    jail.write_text(f"import sys, os\nos.write(int(sys.argv[1]), b'{said}')")
    assert attempt("pass", jail=jail).code == 7
