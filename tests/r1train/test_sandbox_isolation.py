"""Who can make boxes: root and ordinary users; and that nothing is run where they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from r1train.config.schema import ConfigError
from r1train.sandbox import isolation
from r1train.sandbox.box import JAILS, prefer
from r1train.sandbox.cases import StdioCase
from r1train.sandbox.isolation import require_isolation
from r1train.sandbox.judge import run_tests
from r1train.sandbox.languages import python_box
from r1train.sandbox.limits import SandboxError
from tests.r1train.boxes import ENDED, QUICK, attempt, boxed

SHORT = replace(QUICK, wall_seconds=0.5)
ROOT = Path(__file__).parents[2]
NOBODY = 65534
SYSTEM_PYTHON = Path("/usr/bin/python3")
AS_A_USER = """
import os, sys, types
package = types.ModuleType("r1train")  # without what the whole of it imports
package.__path__ = [sys.argv[1]]
sys.modules["r1train"] = package
from dataclasses import replace
from r1train.sandbox.box import run_box
from r1train.sandbox.languages import python_box
from r1train.sandbox.limits import Limits
program = b'''
import os, signal
forked = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            signal.pause()
        forked += 1
    except OSError:
        break
print(os.getuid(), os.getgid(), os.getgroups(), os.path.exists("/proc"), forked < 30)
try:
    os.setuid(0)
    print("root")
except OSError:
    pass
'''
for filtered in (True, False):
    box = replace(python_box({"program.py": program}, Limits(threads=8)), filtered=filtered)
    outcome = run_box(box)
    print(os.getuid(), outcome.output.decode().strip() + outcome.error.decode())
"""


def _old(python: Path) -> bool:
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    return not python.exists() or subprocess.run([python, "-c", code]).returncode != 0


@boxed
@pytest.mark.skipif(os.geteuid() != 0 or _old(SYSTEM_PYTHON), reason="only root can be another")
def test_an_ordinary_user_makes_boxes_too():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are root's alone
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("sandbox", "config"):
            shutil.copytree(ROOT / "r1train" / part, folder / part)
        (folder / "config" / "__init__.py").write_text("")
        run = subprocess.run(
            [SYSTEM_PYTHON, "-I", "-c", AS_A_USER, name],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )
    expected = f"{NOBODY} 1 1 [] False True\n"
    assert (run.stdout.replace(f"[{NOBODY}]", "[]"), run.stderr) == (expected * 2, "")


@boxed
def test_root_s_programs_are_run_as_nobody():
    """Outside, too: a file of root's that a box is shown, and that nobody else may read."""
    outcome = attempt("print(os.getuid(), os.getgid(), os.getgroups())", filtered=False)
    assert outcome.output == b"1 1 []\n" + ENDED
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"root's")
        file.flush()
        program = f"tried('read', lambda: open({file.name!r}).read())"
        folders = (*python_box({}, QUICK).folders, file.name)
        outcome = attempt(program, filtered=False, folders=folders)
    expected = ENDED if os.geteuid() == 0 else b'read: "root\'s"\n' + ENDED
    assert outcome.output == expected


@boxed
def test_many_boxes_at_once_from_many_threads():
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as threads:
        programs = [f"print({n} + int(input()))" for n in range(24)]
        jobs = [
            threads.submit(run_tests, program, "python", [StdioCase("1", str(n + 1))], QUICK)
            for n, program in enumerate(programs)
        ]
        assert all(job.result()[0].passed for job in jobs)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@boxed
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_makes_the_same_box(monkeypatch):
    """Where namespaces of our own fail, it is found and preferred; a box differs by its /tmp."""
    escape = """
    import signal
    tried("fork", os.fork)
    tried("socket", lambda: libc.socket(2, 1, 0))
    tried("mount", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    tried("unshare", lambda: libc.unshare(0x10000000))
    for path in ("/etc/passwd", "/proc/1/root/etc/passwd", "/root/.profile"):
        tried(path, lambda: open(path).read())
    for path in ("/x", "/box/x", "/box/program.py", "/usr/lib/x", "/dev/x"):
        tried(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
    print(os.getuid(), sorted(os.listdir("/box")), sorted(os.listdir("/dev")))
    for descriptor in range(3, 1024):
        tried(("descriptor", descriptor), lambda: os.fstat(descriptor))
    """
    own, bubblewrap = (attempt(escape, jail=jail) for jail in JAILS)
    assert bubblewrap.output == own.output
    for program, code in (("sys.exit(3)", 3), ("os.abort()", -6), ("while True: pass", -24)):
        assert attempt(program, jail=JAILS[1]).code == code
    assert attempt("import time; time.sleep(60)", jail=JAILS[1], limits=SHORT).timed_out
    assert b"MemoryError" in attempt("bytearray(1 << 40)", jail=JAILS[1]).error
    with pytest.raises(SandboxError, match="seccomp"):
        attempt("pass", jail=JAILS[1], filtered=False)
    isolation.why_not.cache_clear()
    try:
        monkeypatch.setattr(isolation, "JAILS", (Path("/no/jail.py"), JAILS[1]))
        require_isolation("python")
        one = [StdioCase("1", "1")]
        assert run_tests("print(input())", "python", one, QUICK)[0].passed
        assert run_tests('int main() { __builtin_puts("1"); }', "cpp", one, QUICK)[0].passed
    finally:
        prefer(JAILS[0])
        isolation.why_not.cache_clear()


def test_a_jail_that_fails_is_a_failure_of_the_machine(tmp_path):
    for text, message in (
        ("raise SystemExit('it broke')", "it broke"),
        ('import sys, os; os.write(int(sys.argv[1]), b\'{"failed": "unshare: no"}\')', "unshare"),
    ):
        jail = tmp_path / "jail.py"
        jail.write_text(text)
        with pytest.raises(SandboxError, match=message):
            attempt("pass", jail=jail)


@pytest.mark.parametrize("setting", ["unprivileged_userns_clone", "max_user_namespaces", None])
def test_a_machine_without_namespaces_is_told_what_to_allow(monkeypatch, tmp_path, setting):
    isolation.why_not.cache_clear()
    settings = []
    for name, value, remedy in isolation._SETTINGS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if setting and setting in name else "7")
        settings.append((str(path), value, remedy))

    def refuse(*_):
        raise SandboxError("unshare: Operation not permitted")

    monkeypatch.setattr(isolation, "_SETTINGS", settings)
    monkeypatch.setattr(isolation, "run_box", refuse)
    with pytest.raises(
        ConfigError, match=f"unshare: Operation not permitted; .*{setting or 'Docker'}"
    ):
        require_isolation("python")
    isolation.why_not.cache_clear()


def test_a_machine_that_is_not_linux_or_has_no_compiler_is_told_so(monkeypatch):
    isolation.why_not.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="use a Linux machine"):
        require_isolation("python")
    isolation.why_not.cache_clear()
    monkeypatch.setattr(isolation, "compiler_path", lambda: None)
    with pytest.raises(ConfigError, match=r"g\+\+, which is not installed"):
        require_isolation("cpp")
