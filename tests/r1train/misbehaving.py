"""Verifiers that do what answers may try, as a user could write them: the worker imports this file.

A job's problem names what its verifier does with the answer. Nothing here imports r1train, torch or
pytest: the worker has only what a verifier brings.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PID_SCALE = 1 << 23  # beyond Linux's largest process number, so that a pid is a score


class Misbehaving:
    """Calls the function below that the problem names; 1 where it returns nothing."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules

    def warm_up(self) -> None:
        for module in self.modules:
            importlib.import_module(module)

    def __call__(self, answer: str, problem: str) -> object:
        score = globals()[problem](answer)
        return 1.0 if score is None else score


class Evil(float):
    """A score that lies whatever is asked of it, and runs code where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch evil",)

    def __float__(self):
        return float("inf")

    def __eq__(self, other):
        return True

    def __le__(self, other):
        return True

    __ge__ = __le__
    __hash__ = float.__hash__


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit("caught out")


# Honest ones.


def right(answer):
    return float(answer == "right")


def pid(answer):
    return os.getpid() / PID_SCALE


def evaluated(answer):
    return float(eval(answer) == 7)


def parsed(answer):
    from sympy import Symbol
    from sympy.parsing.sympy_parser import parse_expr

    return float(parse_expr(answer, local_dict={"x": Symbol("x")}) != 0)


def imports_a_module(answer):
    import xml.dom.minidom  # noqa: F401


def reads_a_file(answer):
    [path] = Path(__file__).parent.glob("misbehaving.py")
    return float("Misbehaving" in path.read_text())


def fails_to_finalize(answer):
    class Failing:
        def __del__(self):
            raise ValueError

    Failing()


def sees_the_environment(answer):
    return float(not any("SECRET" in name for name in os.environ))


def sees_descriptors(answer):
    return float(len(_descriptors()) == 4)  # /dev/null three times, and the line to the keeper


def sees_torch(answer):
    return float("torch" not in sys.modules)


# Wrong scores and exceptions.


def returns_text(answer):
    return answer


def returns_number(answer):
    return float(answer)


def returns_evil(answer):
    return Evil(1.0)


def raises(answer):
    raise {"error": ValueError, "exit": SystemExit, "interrupt": KeyboardInterrupt}[answer](answer)


def raises_base(answer):
    raise BaseException("\x1b[2J\n" + 1000 * "long")


def raises_unprintable(answer):
    raise Unprintable


def recurses(answer):
    recurses(answer)


# Ending and outlasting.


def sleeps(answer):
    time.sleep(600)


def sleeps_deaf(answer):
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    time.sleep(600)


def exits(answer):
    os._exit(0)


def aborts(answer):
    os.abort()


def takes_memory(answer):
    bytearray(1 << 40)


def prints(answer):
    for _ in range(100):
        print("x" * (1 << 20))
        os.write(2, b"x" * (1 << 20))


# Reaching out.


def opens_for_writing(answer):
    Path(answer).write_text("evil")


def appends(answer):
    os.open(answer, os.O_CREAT | os.O_APPEND)


def forks(answer):
    os.fork()


def signals_the_parent(answer):
    os.kill(os.getppid(), signal.SIGKILL)


def starts_a_program(answer):
    os.execv("/bin/true", ["true"])


def runs_a_shell(answer):
    os.system("true")


def runs_a_subprocess(answer):
    import subprocess

    subprocess.run(["true"])


def opens_a_socket(answer):
    import socket

    socket.socket()


def connects_sqlite(answer):
    import sqlite3

    sqlite3.connect(answer)


def loads_a_library(answer):
    import ctypes

    ctypes.CDLL(None)


def starts_a_thread(answer):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def looks_at_all_objects(answer):
    gc.get_objects()


def adds_a_hook(answer):
    sys.addaudithook(print)


def replaces_code(answer):
    right.__code__ = pid.__code__


def makes_code(answer):
    right.__code__.replace(co_name="x")


def unmarshals(answer):
    import marshal

    marshal.loads(marshal.dumps(1))


def unpickles(answer):
    import pickle

    pickle.loads(b"cos\nsystem\n.")


def asks_the_user(answer):
    input()


def raises_limits(answer):
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))


def swallows_all(answer):
    with suppress(BaseException):
        os.fork()
    return 1.0


# Watched, and allowed: the process is not used again.


def walks_frames(answer):
    frame = sys._getframe(0)
    while frame is not None:
        for name in ("score", "verdict", "outcome", "index"):
            if name in frame.f_locals:
                frame.f_locals[name] = 1
        frame = frame.f_back
    return os.getpid() / PID_SCALE


# Forging. What an answer cannot know by itself it is told here: the layout of a frame.


def _descriptors():
    found = []
    for descriptor in range(256):
        with suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return found


def _say(data):
    os.write(_descriptors()[-1], data)


def _frame(job, kind=4, score=1.0, text=b""):
    import struct

    return struct.pack("!BId243s", kind, job, score, text)


def forges_this_verdict(answer):
    _say(_frame(int(answer)))
    return 0.0


def forges_later_verdicts(answer):
    job = int(answer)
    _say(b"".join(_frame(job + i) for i in range(20)))
    time.sleep(600)


def writes_garbage(answer):
    _say(b"\x80\x05cos\nsystem\n(S'touch evil'\ntR." + bytes(300))
    time.sleep(600)


def writes_without_end(answer):
    while True:
        _say(bytes(1 << 16))


def says_nan(answer):
    _say(_frame(int(answer), score=float("nan")))
    time.sleep(600)


def closes_its_pipe(answer):
    os.close(_descriptors()[-1])
    time.sleep(600)
