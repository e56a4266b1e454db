"""Escape attempts: what an answer does in its verifier's process stays there."""

from __future__ import annotations

import subprocess

import pytest

from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import load_problems
from r1train.rewards.pool import pool as pool_module
from r1train.rewards.pool.pool import Outcome, VerifierPool
from r1train.rewards.verifiers import Verifier
from tests.r1train.misbehaving import PID_SCALE, Misbehaving
from tests.r1train.verifier_pools import RIGHT, judged, linux, script


@pytest.mark.parametrize(
    ("behaviour", "event"),
    [
        ("forks", "os.fork"),
        ("signals_the_parent", "os.kill"),
        ("starts_a_program", "os.exec"),
        ("runs_a_shell", "os.system"),
        ("runs_a_subprocess", "subprocess.Popen"),
        ("opens_a_socket", "socket.__new__"),
        ("connects_sqlite", "sqlite3.connect"),
        ("loads_a_library", "ctypes.dlopen"),
        ("looks_at_all_objects", "gc.get_objects"),
        ("adds_a_hook", "sys.addaudithook"),
        ("replaces_code", "object.__setattr__"),
        ("makes_code", "code.__new__"),
        ("unmarshals", "marshal."),
        ("unpickles", "pickle.find_class"),
        ("asks_the_user", "builtins.input"),
        ("raises_limits", "resource.setrlimit"),
        ("swallows_all", "os.fork"),
    ],
)
def test_what_is_refused_ends_the_process(pool, behaviour, event):
    outcome = judged(pool, "evil", behaviour)
    assert outcome[:2] == (0.0, "error")
    assert outcome.message.startswith(f"a verifier may not do this: {event}")


def test_threads_are_not_started(pool):
    outcome = judged(pool, "", "starts_a_thread")  # Python 3.11's hook does not see them
    assert outcome[:2] == (0.0, "error")
    assert "thread" in outcome.message


@pytest.mark.parametrize("behaviour", ["opens_for_writing", "appends"])
def test_files_are_not_written(pool, behaviour):
    message = "a verifier may not write files: evil"
    assert judged(pool, "evil", behaviour) == Outcome(0.0, "error", message)


def processes(pool, *jobs):
    return [round(outcome.score * PID_SCALE) for outcome in pool.run([*jobs, RIGHT, RIGHT])[:-2]]


def test_an_answer_that_did_what_is_watched_is_the_last_of_its_process(pool):
    first, second = processes(pool, ("", "pid"), ("", "pid"))
    assert first == second
    walked, after = processes(pool, ("", "walks_frames"), ("", "pid"))
    assert 1 < walked != after
    before, evaluated, after = processes(pool, ("", "pid"), ("3 + 4", "evaluated"), ("", "pid"))
    assert (evaluated, before != after) == (PID_SCALE, True)


@pytest.mark.parametrize(
    ("expression", "score"),
    [
        ("3 + 4", 1),
        ("sum([3, 4])", None),
        ("[0, *(3, 4)][1] + 4", 1),
        ("answer", None),  # the verifier's own variables
        ("(lambda: 7)()", None),
        ("[x for x in (7,)][0]", None),
        ("(x := 7)", None),
        ("(7).real", None),
        ("exec('import os')", None),
        ("__import__('os').system('touch evil')", None),
        ("__import__('r1train.rewards.pool.pool')", None),
        ("().__class__.__base__.__subclasses__()", None),
        ("f'{().__class__}'", None),
    ],
)
def test_what_plain_eval_may_evaluate(pool, expression, score):
    outcome = judged(pool, expression, "evaluated")
    if score is None:
        assert outcome.failure == "error"
        assert outcome.message.startswith(("NameError: name", "evaluated text may not"))
    else:
        assert outcome == Outcome(score)


@pytest.mark.parametrize(
    "expression",
    ["2**10 - 4/3", "sqrt(2)*sin(x) + log(y, 2)", "x**2/2 + C", "exp(-x)*pi", "-5!", "f(3)"],
)
def test_what_sympy_may_parse(pool, expression):
    assert judged(pool, expression, "parsed") == Outcome(1.0)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch evil')",
        "sin(\"__import__('os').system('touch evil')\")",  # sympify parses strings
        "exec('import os')",
        "eval('1')",
        "open('evil', 'w')",
        "print(1)",
        "getattr(x, 'subs')",
        "x.subs(x, 1)",
        "x.__class__",
        "(lambda: 1)()",
        "lambda: 1",
        "(x := 3)",
        "[i for i in (1, 2)]",
        "lambdify((), 1)()",
        "sympify('1')",
        "S('1')",
        "Integral(x, x)",
        "f'{x.__class__}'",
    ],
)
def test_what_sympy_may_not_run(pool, expression):
    outcome = judged(pool, expression, "parsed")
    assert outcome[:2] == (0.0, "error")


ELSEWHERE = """
import types
from r1train.rewards.pool import limits as pool_limits, worker as pool_worker
pool_limits.sys = types.SimpleNamespace(platform="darwin")
pool_worker.main()
"""


def test_without_what_is_linuxs_the_hook_and_the_limits_hold(monkeypatch):
    monkeypatch.setattr(pool_module, "_PROGRAM", ELSEWHERE)
    with VerifierPool(Misbehaving(), workers=1, timeout=20.0) as pool:
        message = "a verifier may not do this: os.fork"
        assert judged(pool, "", "forks") == Outcome(0.0, "error", message)
        outcome = judged(pool, "3 + 4", "evaluated")
        assert outcome == Outcome(1.0)
        before, _, after = processes(pool, ("", "pid"), ("", "starts_a_thread"), ("", "pid"))
        assert before != after  # a thread that could be started has gone with its process


# The datasets of reasoning-gym whose verifiers evaluate answers, with `eval` or with sympy.
EVALUATING = (
    "binary_matrix",
    "bitwise_arithmetic",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "number_sorting",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)


@pytest.fixture(scope="module")
def reasoning_gym(tmp_path_factory):
    """A problem of each, and a pool in an empty folder."""
    folder = tmp_path_factory.mktemp("reasoning_gym")
    datasets = tuple(DatasetConfig(name=name) for name in EVALUATING)
    config = TaskConfig(datasets=datasets, train_size=len(datasets), heldout_size=len(datasets))
    train, _ = load_problems(config, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with VerifierPool(Verifier(train.sources), workers=1, timeout=20.0) as pool:
            yield {problem.task: problem for problem in train}, Verifier(train.sources), pool
    assert list(folder.iterdir()) == []


def reference(problem):
    return problem.metadata["expression"] if problem.task == "countdown" else problem.answer


def test_verifiers_of_reasoning_gym_score_as_without_a_fence(reasoning_gym):
    problems, verify, pool = reasoning_gym
    jobs = [
        (answer, problem)
        for problem in problems.values()
        for right in [reference(problem)]
        for answer in (right, str(right.split()), f"{right} + 1", "nan", "no idea", "x**2/2 + C")
    ]
    scores = [outcome.score for outcome in pool.run(jobs)]
    assert scores == [verify(*job) for job in jobs]
    assert scores[::6] == [1.0] * len(EVALUATING)


def test_verifiers_of_reasoning_gym_outlast_attempts(reasoning_gym):
    problems, _, pool = reasoning_gym
    expression = problems["countdown"].metadata["expression"]
    method = "__import__('reasoning_gym').games.countdown.CountdownDataset.score_answer"
    attempts = [
        f"exec({f'{method} = lambda *_: 1.0'!r}) or {expression}",
        f"({expression}) + 0*len(globals())",
        f"{expression} if __import__('gc').get_objects() else 0",
        "entry['answer']",
        "[entry['answer']]",
        "[*entry['answer'].split()]",
        "[__import__('os').getpid()]",
        "Integral(1, x)",
    ]
    jobs = [(attempt, problem) for problem in problems.values() for attempt in attempts]
    right = [(reference(problem), problem) for problem in problems.values()]
    outcomes = pool.run([*jobs, *right])
    assert all(outcome.score < 0.2 for outcome in outcomes[: len(jobs)])
    assert outcomes[len(jobs) :] == [Outcome(1.0)] * len(right)


@linux
def test_what_the_system_refuses_without_the_hook(tmp_path):
    """In a forked process with the limits alone: what code would meet that got around the hook."""
    command, environment = script(
        tmp_path,
        """
        import ctypes, fcntl, os, resource, signal, socket, sys, threading
        from r1train.rewards.pool.limits import Limits
        limits, libc, parent = Limits(), ctypes.CDLL(None, use_errno=True), os.getpid()
        if os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
        limits.take_on(parent, cpu_seconds=5)
        attempts = {
            "fork": os.fork,
            "exec": lambda: os.execv("/bin/true", ["true"]),
            "kill": lambda: os.kill(parent, signal.SIGTERM),
            "signal": lambda: fcntl.fcntl(1, fcntl.F_SETOWN, parent),
            "socket": socket.socket,
            "write": lambda: open("evil", "w"),
            "mkdir": lambda: os.mkdir("evil"),
            "thread": threading.Thread(target=print).start,
            "ptrace": lambda: check(libc.ptrace(16, parent, 0, 0)),
            "prctl": lambda: check(libc.prctl(1, 0, 0, 0, 0)),
            "limit": lambda: resource.setrlimit(resource.RLIMIT_CPU, (9, 9)),
        }
        def check(result):
            if result < 0:
                raise OSError(ctypes.get_errno(), "")
        for name, attempt in attempts.items():
            try:
                attempt()
            except (OSError, RuntimeError, ValueError):
                print(name, "refused", flush=True)
            else:
                print(name, "ALLOWED", flush=True)
        print(open("/dev/null").read() or "read", flush=True)
        os._exit(0)
        """,
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *attempts, last = done.stdout.splitlines()
    assert [line for line in attempts if not line.endswith("refused")] == []
    assert (len(attempts), last) == (11, "read")
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.py"]
