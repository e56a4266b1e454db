"""Escape attempts: no privilege is gained, and no system call that is not listed gets through."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

from r1train.sandbox.cases import StdioCase
from r1train.sandbox.judge import run_tests
from r1train.sandbox.languages import python_box
from r1train.sandbox.syscalls import NUMBERS, PROGRAM
from tests.r1train.boxes import ENDED, QUICK, attempt, boxed, filters

pytestmark = boxed


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
