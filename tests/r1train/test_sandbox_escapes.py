"""Escape attempts: nothing outside a box is read, written, reached or signalled from inside.

Each program does what would be harmful, by every way that comes to mind, and prints a line for
each that succeeds. Most are tried under a seccomp filter and without: each layer holds alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from r1train.sandbox.cases import StdioCase
from r1train.sandbox.judge import run_tests
from r1train.sandbox.languages import python_box
from r1train.sandbox.syscalls import NUMBERS, PROGRAM
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
def test_privileges_are_not_gained(filtered):
    outcome = attempt(
        """
        for name, *arguments in (
            ("setuid", 0), ("setgid", 0), ("setresuid", 0, 0, 0), ("setgroups", 0, None),
            ("unshare", 0x10000000), ("unshare", 0x00020000), ("unshare", 0x40000000),
            ("mount", b"none", b"/tmp", b"tmpfs", 0, None), ("umount2", b"/tmp", 2),
            ("mount", b"proc", b"/tmp", b"proc", 0, None),
            ("mount", b"/", b"/tmp", None, 4096, None),
            ("mount", None, b"/usr/lib", None, 32, None), ("mount", None, b"/", None, 32, None),
            ("chroot", b"/tmp"), ("pivot_root", b"/tmp", b"/tmp"), ("sethostname", b"x", 1),
            ("ptrace", 16, 1, 0, 0), ("ptrace", 16, os.getppid(), 0, 0), ("swapoff", b"/x"),
            ("mknod", b"/tmp/disk", 0o60666, 0xFE00), ("reboot", 0), ("acct", b"/tmp/x"),
            ("init_module", 0, 0, b""), ("klogctl", 3, ctypes.create_string_buffer(99), 99),
            ("settimeofday", ctypes.create_string_buffer(16), None), ("setns", 0, 0),
            ("open_by_handle_at", -100, ctypes.create_string_buffer(99), 0),
            ("process_vm_readv", 1, 0, 1, 0, 1, 0), ("iopl", 3), ("quotactl", 0, b"", 0, 0),
        ):
            if hasattr(libc, name) and (result := getattr(libc, name)(*arguments)) >= 0:
                name == "process_vm_readv" or harm((name, arguments, result))
        import resource
        for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
            soft, hard = resource.getrlimit(which)
            hard == -1 and harm(("no limit", which))
            try:
                resource.setrlimit(which, (hard + 1, hard + 1))
                harm(("raised", which))
            except (OSError, ValueError):
                pass
        """,
        filtered=filtered,
    )
    assert outcome.output == ENDED, outcome.error


def test_every_system_call_that_is_not_listed_is_refused():
    """By its number: what it would do is left open, for none of them gets that far."""
    machine = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    allowed = [n for name in PROGRAM if (n := NUMBERS[name][machine]) is not None]
    allowed += [335, 336] * (machine == 0)  # uretprobe, uprobe: no filter sees them; SIGILL ends it
    outcome = attempt(
        f"""
        import errno
        for number in [*range(1024), *range(0x40000000, 0x40000400)]:
            if number not in {allowed}:
                ctypes.set_errno(0)
                result = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
                if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
                    harm((number, result, ctypes.get_errno()))
        for flags in (0, 17, 0x4111, 0x10000000, 0x7E020000):  # processes and namespaces
            if libc.syscall({NUMBERS["clone"][machine]}, flags, 0, 0, 0, 0) != -1:
                harm(("clone", hex(flags)))
        for request in (0x5412, 0x541C, 0x5423, 0x8004):  # TIOCSTI, TIOCLINUX, TIOCSETD
            for descriptor in (0, 1, 2):
                tried(("ioctl", request), lambda: libc.ioctl(descriptor, request, b"x"))
        """
    )
    assert outcome.output == ENDED, outcome.error


@filters
def test_other_programs_are_not_there_or_as_powerless(filtered):
    outcome = attempt(
        """
        for path in ("/bin/sh", "/bin/su", "/usr/bin/sudo", "/usr/bin/mount", "/usr/bin/env"):
            tried(path, lambda: os.execv(path, [path]))
        for folder in ("/usr/lib", "/lib", "/tmp", "/box", "/dev", os.path.dirname(os.__file__)):
            os.statvfs(folder).f_flag & os.ST_NOSUID or harm(("setuid counts", folder))
        for folder in ("/tmp", "/dev/shm"):
            with open(f"{folder}/own", "w") as file:
                file.write("#!/box/program.py\\n")
            os.chmod(f"{folder}/own", 0o777)
            tried("own", lambda: os.execv(f"{folder}/own", ["own"]))
        """,
        filtered=filtered,
    )
    assert outcome.output == ENDED, outcome.error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a program")
def test_a_setuid_program_has_no_more_than_others(tmp_path):
    own = tmp_path / "id"
    shutil.copy(os.path.realpath(shutil.which("id") or "/usr/bin/id"), own)
    own.chmod(0o4755)
    tmp_path.chmod(0o755)
    folders = python_box({}, QUICK).folders
    program = f"os.execv({str(own)!r}, ['id', '-u'])"
    outcome = attempt(program, filtered=False, folders=(*folders, str(tmp_path)))
    assert outcome.output == b"1\n", outcome.error


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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has 32-bit numbers, too")
def test_cpp_is_as_contained_and_32_bit_numbers_are_refused():
    source = r"""
    #include <cstdio>
    #include <fcntl.h>
    #include <initializer_list>
    #include <sched.h>
    #include <sys/socket.h>
    #include <unistd.h>
    int main() {
        for (int number = 1; number < 460; number++) {
            long result;
            asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0));
            if (result != -1) printf("32-bit %d: %ld\n", number, result);
        }
        if (fork() >= 0) puts("fork");
        if (vfork() >= 0) puts("vfork");
        if (socket(AF_INET, SOCK_STREAM, 0) >= 0) puts("socket");
        if (unshare(CLONE_NEWUSER) == 0) puts("unshare");
        for (const char* path : {"/etc/passwd", "/proc/self/maps", "/box/../etc/passwd"})
            if (open(path, O_RDONLY) >= 0) puts(path);
        for (const char* path : {"/x", "/box/program", "/usr/lib/x"})
            if (open(path, O_WRONLY | O_CREAT, 0777) >= 0) puts(path);
        puts("ended");
    }"""
    (result,) = run_tests(source, "cpp", [StdioCase("", "ended")], QUICK)
    assert result.passed, result
