"""What a program may use: time, memory, threads, output and files end where its limits say."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from r1train.sandbox import box, languages
from r1train.sandbox.cases import StdioCase
from r1train.sandbox.judge import run_tests
from tests.r1train.boxes import (
    ENDED,
    QUICK,
    attempt,
    boxed,
    filters,
    survivors,
    unique_name,
)

pytestmark = boxed

SHORT = replace(QUICK, wall_seconds=0.5)


@pytest.mark.parametrize(
    "program",
    [
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        pytest.param("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", marks=pytest.mark.slow),
        """
        import threading
        def burn():
            while True: pass
        for _ in range(4): threading.Thread(target=burn).start()
        """,
    ],
    ids=["ignores the signal", "regular expression", "threads"],
)
def test_processor_time_ends(program):
    outcome = attempt(program, limits=replace(QUICK, wall_seconds=60))
    assert outcome.code in (-signal.SIGXCPU, -signal.SIGKILL), outcome
    assert outcome.cpu_seconds < 2.5


@pytest.mark.parametrize(
    "program",
    [
        "import time\ntime.sleep(60)",
        "import os, time\nfor end in (0, 1, 2): os.close(end)\ntime.sleep(60)",
        "import signal\nfor n in {*range(1, 32)} - {9, 19}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: signal.pause()",
        "input()\ninput()\nimport time\ntime.sleep(60)",
        "import os\nos.kill(os.getpid(), 19)",
    ],
    ids=["sleeps", "closes its pipes", "ignores signals", "waits for input", "stops itself"],
)
def test_time_that_passes_ends(program):
    name = unique_name()
    start = time.monotonic()
    outcome = attempt(program, limits=SHORT, given="a line\nand another\n", name=name)
    assert (outcome.timed_out, outcome.code) == (True, None), outcome
    assert time.monotonic() - start < 20  # of which it has half a second
    assert survivors(name) == []


@filters
def test_a_fork_bomb_is_a_few_processes_that_end(filtered):
    name = unique_name()
    outcome = attempt(
        """
        import time
        first = os.getpid()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            try:
                if os.fork() == 0:
                    harm("child")
            except OSError:
                time.sleep(0.01)
        while os.getpid() != first: time.sleep(1)
        """,
        filtered=filtered,
        name=name,
    )
    children = outcome.output.count(b"child\n")
    assert children == 0 if filtered else 0 < children <= QUICK.threads + 3
    assert survivors(name) == []


def test_zombies_are_reaped_and_counted():
    outcome = attempt(
        """
        import time
        made = 0
        for _ in range(2000):
            try:
                if os.fork() == 0:
                    os._exit(0)
                made += 1
            except OSError:
                break
        print(made <= 20)
        """,
        filtered=False,
    )
    assert outcome.output == b"True\n" + ENDED


@filters
def test_a_bomb_of_threads_is_a_few(filtered):
    outcome = attempt(
        """
        import threading, time
        made = 0
        try:
            while made < 1000:
                threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
                made += 1
        except RuntimeError:
            harm(made)
        os._exit(0)
        """,
        limits=replace(QUICK, memory_mb=4096),
        filtered=filtered,
    )
    assert 1 <= int(outcome.output) <= QUICK.threads + 3


@pytest.mark.parametrize(
    "program",
    [
        "data = []\nwhile True: data.append(bytearray(1 << 20))",
        "import mmap\ndata = []\nwhile True:\n  data.append(mmap.mmap(-1, 1 << 24))\n"
        "  data[-1][::4096] = b'x' * (1 << 12)",
        "bytearray(1 << 40)",
        pytest.param(
            "sys.setrecursionlimit(10**9)\ndef f(n): return f(n)\n"
            "try: f(0)\nexcept MemoryError: raise SystemExit(1) from None",
            marks=pytest.mark.slow,
        ),
        "f = 0\nfor _ in range(10**6): f = [f]\nrepr(f)",
    ],
    ids=["bytes", "anonymous maps", "at once", "recursion", "nesting"],
)
def test_memory_ends(program):
    outcome = attempt(program, limits=replace(QUICK, cpu_seconds=3, wall_seconds=60, memory_mb=96))
    assert not outcome.timed_out
    assert outcome.code != 0
    assert ENDED not in outcome.output


@pytest.mark.parametrize("descriptor", [1, 2], ids=["stdout", "stderr"])
def test_output_ends(descriptor):
    outcome = attempt(f"while True: os.write({descriptor}, b'x' * 65536)")
    assert outcome.overflowed
    assert len(outcome.output) <= QUICK.output_bytes
    assert len(outcome.error) <= 2000


@filters
def test_scratch_files_end(filtered):
    outcome = attempt(
        """
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        written = files = 0
        try:
            while True:
                with open(f"/tmp/{files}", "wb", buffering=0) as file:
                    for _ in range(16):
                        written += file.write(b"x" * 65536)
                files += 1
        except OSError:
            print(written)
        for name in os.listdir("/tmp"):
            os.unlink(f"/tmp/{name}")
        try:
            while True:
                os.symlink("/" * 3000, f"/tmp/{files}")
                files += 1
        except OSError:
            print(len(os.listdir("/tmp")))
        """,
        filtered=filtered,
    )
    written, files, ended = outcome.output.splitlines(keepends=True)
    assert int(written) <= QUICK.scratch_mb << 20
    assert int(files) <= 4096
    assert ended == ENDED


def test_a_large_input_that_nobody_reads_and_arguments_that_nobody_takes():
    outcome = attempt("pass", given="x" * (4 << 20))
    assert (outcome.code, outcome.output) == (0, ENDED)
    outcome = attempt("tried('exec', lambda: os.execv(sys.executable, ['x' * 100_000] * 1000))")
    assert (outcome.code, outcome.output) == (0, ENDED)


def test_a_compiler_has_limits_too(monkeypatch):
    limits = replace(languages.COMPILER, cpu_seconds=1, memory_mb=512, wall_seconds=10)
    monkeypatch.setattr(languages, "COMPILER", limits)
    endless = "template<int n> struct F { static const int v = F<n-1>::v + F<n-2>::v; };"
    for source in (
        endless + "int main() { return F<800>::v; }",
        "#define A(x) x x x x x x x x\n#define B(x) A(A(A(A(x))))\nint a[] = {B(B(B(1,)))};",
        '#include "/dev/zero"',
        "int a[1 << 28] = {1}; int main() {}",
    ):
        (result,) = run_tests(source, "cpp", [StdioCase("", "1")])
        assert result.status == "not compiled", result
        assert result.cpu_seconds < 3


def test_a_compiler_reads_nothing_outside(tmp_path):
    secret = tmp_path / "secret.h"
    secret.write_text('int main() { __builtin_puts("read"); }')
    for source in (
        f'#include "{secret}"',
        '#include "/etc/passwd"',
        f'asm(".incbin \\"{secret}\\""); int main() {{ __builtin_puts("read"); }}',
        f'#if __has_include("{secret}")\nint main() {{ __builtin_puts("read"); }}\n#endif',
    ):
        (result,) = run_tests(source, "cpp", [StdioCase("", "read")])
        assert result.status == "not compiled", result


def test_a_machine_that_stood_still_loses_no_result(monkeypatch):
    """What has ended meanwhile is read, though its time is up by the clock."""
    original = box._attend

    def attend_late(jails):
        jails[0].send("control")
        jails[0].process.wait()
        jails[0].deadline -= 1000
        original(jails)

    monkeypatch.setattr(box, "_attend", attend_late)
    outcome = attempt("print('x' * 30_000)")
    assert (outcome.code, len(outcome.output)) == (0, 30_001 + len(ENDED))


def test_boxes_that_are_late_are_given_time_to_end(monkeypatch):
    original = box._attend

    def attend_late(jails):
        jails[0].deadline -= 1000
        original(jails)

    monkeypatch.setattr(box, "_attend", attend_late)
    assert attempt("import time; time.sleep(60)").timed_out
