"""Functions of users: how they are found and called, and what becomes of those that fail."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

import r1train
from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError, RunError
from r1train.data.problems import Problem, ProblemSet
from r1train.rewards.base import Scores
from r1train.rewards.custom.function import FunctionFailed, UserFunction, load_function, source_file
from r1train.rewards.custom.reward import CustomReward, arguments, fields, split
from r1train.run.signals import Stopped
from tests.r1train.samples import ONE, OTHER, sample
from tests.r1train.verifier_pools import linux, script

PROBLEMS = ProblemSet([ONE, OTHER], ())
TESTED = replace(ONE, metadata={"tests": [1, 2]})
FILE = """
import functools, os, time
import numpy as np
import torch_free
from r1train import in_process

def length(completions, **columns):
    return [None if text == "?" else float(len(text)) for text in completions]

def seen(prompts, completions, completion_ids, answer, question, hint=None):
    assert all(ids == [len(text)] for ids, text in zip(completion_ids, completions))
    return [len(p) + len(a) + len(q) + (h == "odd") / 2
            for p, a, q, h in zip(prompts, answer, question, hint)]

def numpys(completions):
    return np.array([len(text) for text in completions], dtype=np.float32) / 4

async def later(completions):
    return [True for _ in completions]

def where(completions):
    print("printed by the function")
    return [os.getpid()] * len(completions)

def hostile(completions):
    for text in completions:
        if text == "raise":
            raise ValueError("no such text")
        if text == "die":
            os._exit(3)
        if text == "loop":
            time.sleep(60)
        if text == "memory":
            bytearray(5 << 30)
        if text == "exit":
            exit()
    return [1.0] * len(completions)

def lazy(completions):
    for text in completions:
        yield None if text == "?" else len(text) / (text != "raise")

async def lazy_later(completions):
    for text in completions:
        yield len(text) / (text != "raise")

def endless(completions):
    while True:
        yield 1.0

def emptying(completions, completion_ids):
    return [float(len(completions.pop(0))) for _ in completion_ids]

def quoting(completions):
    for text in completions:
        if text.startswith("x"):
            raise ValueError(text)
    return [1.0] * len(completions)

class Interrupt(BaseException): pass
class Unprintable(Exception):
    def __str__(self): raise ValueError
class Odd:
    def __repr__(self): raise KeyError
    def item(self, which): return 1.0

def raising(completions):
    kinds = {"k": KeyboardInterrupt, "b": Interrupt, "u": Unprintable, "m": torch_free.fail}
    for text in completions:
        if text in kinds:
            raise kinds[text]()
    return [Odd() if text == "o" else 1.0 for text in completions]

class Judge:
    def __init__(self, scale): self.scale = scale
    def __call__(self, completions): return [self.scale / len(text) for text in completions]
    def method(self, completions): return self(completions)

def scaled(factor, completions, least=0.0):
    return [max(least, factor / len(text)) for text in completions]

def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

judge = Judge(2.0)
method = judge.method
part = functools.partial(scaled, 2.0)
decorated = logged(functools.wraps(scaled)(functools.partial(scaled, 2.0)))

def needs(completions, solution, **columns): return [1.0] * len(completions)
def tells(completions, **columns): return [len(columns) for _ in completions]
@in_process
def corrupts(completions, tests):
    return [float(len([inner.pop() for _ in list(inner)])) for inner in tests]
def nan(completions): return [float("nan") if text == "bad" else 1 for text in completions]
def text(completions): return ["1" if text == "bad" else 1 for text in completions]
def scalar(completions): return 0.5
def zero_dim(completions): return np.array(0.5)
def a_set(completions): return {0.5}
def a_dict(completions): return {text: 0.5 for text in completions}
def a_string(completions): return "1"
def nothing(completions): pass
def infinite(completions): return np.full(len(completions), np.inf)
def booleans(completions): return np.array([text == "a" for text in completions])
def columns(completions): return np.ones((len(completions), 1))
def short(completions): return [0.5]
def through(completions): return map(lambda text: torch_free.fail(), completions)
outside = torch_free.fail
def mistaken(completions, anwser): return [0.5]
@in_process
def own(completions, **_): return [os.getpid() for _ in completions]
@in_process
def own_failing(completions, **_): return [1 / len(text) for text in completions]
not_a_function = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    beside = "def fail(completions=()):\n    raise OSError('beside')\n"
    (folder / "torch_free.py").write_text(beside)  # what lies beside the file can be imported
    path = folder / "my_rewards.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def reward(file):
    """The reward of a function of the file, ended after the test."""
    made = []

    def make(name, problems=(ONE, OTHER), **options):
        config = RewardConfig(**{"timeout": 30, **options})
        problem_set = ProblemSet(problems, ())
        made.append(CustomReward(load_function(f"{file}:{name}"), config, problem_set))
        return made[-1]

    yield make
    for each in made:
        each.close()


def samples(*completions, problem=ONE):
    return [sample(problem, completion) for completion in completions]


def test_none_is_kept_and_order_too(reward):
    length = reward("length", workers=2)
    for _ in range(2):
        assert length(samples("", "?", "abc")) == Scores([0, None, 3])
    assert length([]) == Scores([])


def test_a_function_is_given_texts_tokens_and_columns(reward):
    batch = [sample(ONE, "a", prompt="p"), sample(OTHER, "bb", prompt="pp")]
    assert reward("seen")(batch).values == [1 + 1 + 14, 2 + 1 + 14 + 0.5]


def test_the_answer_is_the_reference_or_where_there_is_none_the_column():
    raw = {"answer": "A few", "question": "other"}
    judged = Problem("a.jsonl", 0, "q", "72", columns=raw)
    assert fields(judged) == {"answer": "72", "question": "q"}
    unjudged = Problem("a.jsonl", 0, "q", "", columns=raw, verifiable=False)
    assert fields(unjudged) == {"answer": "A few", "question": "q"}
    assert fields(Problem("a.jsonl", 0, "q", "", verifiable=False))["answer"] == ""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("numpys", [0.25, 0.5]),
        ("booleans", [1, 0]),
        ("columns", [1, 1]),
        ("later", [1, 1]),
        ("lazy", [1, 2]),
        ("lazy_later", [1, 2]),
        ("emptying", [1, 2]),
        ("judge", [2, 1]),
        ("method", [2, 1]),
        ("part", [2, 1]),
        ("decorated", [2, 1]),
    ],
)
def test_what_is_called_and_returned_in_other_ways(file, name, values):
    batch = arguments(samples("a", "bb"))
    assert load_function(f"{file}:{name}")(batch) == values


@pytest.mark.parametrize("name", ["lazy", "lazy_later"])
def test_what_raises_while_it_is_read_costs_its_own_reward_alone(reward, name, caplog):
    lazy = reward(name)
    assert lazy(samples("a", "raise", "bb")) == Scores([1, None, 2], errors=1)
    assert "ZeroDivisionError" in caplog.text
    assert "my_rewards.py, line" in caplog.text


def test_whatever_a_process_raises_is_an_error_of_one_completion(reward):
    raising = reward("raising")
    pids = [worker.process.pid for worker in raising.caller.workers]
    batch = samples("k", "b", "u", "m", "o", "a")
    assert raising(batch) == Scores([None] * 5 + [1], errors=5)
    assert [worker.process.pid for worker in raising.caller.workers] == pids


def test_an_error_is_told_in_a_few_hundred_characters(reward, caplog):
    quoting = reward("quoting")
    assert quoting(samples("a", "x\x1b[31m" + "y" * 10**5)).errors == 1
    assert len(caplog.text) < 1500
    assert "\x1b" not in caplog.text
    assert re.search(r"y…  ?\(my_rewards.py, line \d+: raise ValueError\(text\)\)", caplog.text)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("outside", "torch_free.py, line 2: raise OSError"),
        ("through", r"my_rewards.py, line \d+: "),
    ],
)
def test_an_error_is_told_with_the_line_of_the_file_or_the_last(file, name, line):
    with pytest.raises(FunctionFailed, match=rf"OSError: beside \({line}"):
        load_function(f"{file}:{name}")({"completions": ["a"]})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(15)])
def test_a_signal_ends_the_trainer_within_a_function_of_its_own(error):
    def interrupted(completions):
        raise error

    function = UserFunction("mine.py:interrupted", "interrupted", interrupted, "mine.py")
    with pytest.raises(type(error)):
        function({"completions": ["a"]})


def test_a_function_in_the_trainer_cannot_change_a_problem(reward):
    corrupts = reward("corrupts", problems=[TESTED])
    assert corrupts(samples("a", problem=TESTED)).values == [2]
    assert corrupts(samples("a", problem=TESTED)).values == [2]


def test_scalars_of_torch_are_numbers(tmp_path):
    path = tmp_path / "of_torch.py"
    path.write_text("import torch\ndef f(completions): return torch.arange(3) / 2\n")
    function = load_function(f"{path}:f")
    assert function({"completions": ["a", "b", "c"]}) == [0, 0.5, 1]


def test_a_function_runs_in_processes_of_its_own(reward, capfd):
    where = reward("where", workers=2)
    pids = where([*samples("a", "b"), *samples("c", problem=OTHER)]).values
    assert pids[0] == pids[1]  # completions of a problem stay together
    assert os.getpid() not in pids
    assert set(where(samples("a", "b")).values) <= {w.process.pid for w in where.caller.workers}
    assert "printed by the function" in capfd.readouterr().out


def test_the_decorator_calls_it_in_the_trainer(reward):
    assert reward("own")(samples("a")).values == [os.getpid()]
    assert reward("own_failing")(samples("ab", "")) == Scores([0.5, None], errors=1)


def test_what_breaks_a_function_costs_its_own_reward_alone(reward, caplog):
    hostile = reward("hostile")
    batch = samples("a", "raise", "die", "memory", "exit", "b")
    assert hostile(batch) == Scores([1, None, None, None, None, 1], errors=4)
    assert hostile(batch).errors == 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in (
        "my_rewards.py:hostile raised ValueError: no such text (my_rewards.py, line 28: raise",
        "4 of 6 completions, such as 'raise' of sums.jsonl, problem 1",
        "rewards/hostile/errors",
    ):
        assert part in caplog.text


def test_time_outs_are_counted_and_the_process_is_replaced(reward):
    hostile = reward("hostile")
    assert hostile(samples("a")).values == [1]
    hostile.caller.timeout = 0.3
    assert hostile(samples("loop", "b")) == Scores([None, 1], timeouts=1)


def test_many_time_outs_are_given_up(reward):
    hostile = reward("hostile")
    assert hostile(samples("a")).values == [1]
    hostile.caller.timeout = 0.2
    start = time.monotonic()
    scores = hostile(samples(*["loop"] * 30, "b"))
    assert scores == Scores([None] * 31, timeouts=31)
    assert time.monotonic() - start < 15  # thirty starts would take longer


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "nan",
            r"my_rewards.py:nan returned nan: expected a finite number, or None.*'bad' of sums",
        ),
        ("text", r"returned '1': expected a finite number"),
        ("scalar", r"returned 0.5: expected a list of 1, one reward for each completion"),
        ("zero_dim", r"returned array\(0.5\): expected a list of 1"),
        ("a_set", r"returned {0.5}: expected a list of 1"),
        ("a_dict", r"returned {'bad': 0.5}: expected a list of 1"),
        ("a_string", r"returned '1': expected a list of 1"),
        ("nothing", r"returned None: expected a list of 1"),
        ("endless", r"returned more than 1 values: expected a list of 1"),
        ("infinite", r"returned .*inf.*: expected a finite number"),
        ("hostile", r"raised ValueError: no such text"),
    ],
)
def test_a_function_that_fails_for_all_ends_the_run(reward, name, expected):
    with pytest.raises(RunError, match=expected):
        reward(name)(samples("bad" if name != "hostile" else "raise"))


def test_lists_of_another_length_are_refused(file):
    with pytest.raises(Exception, match="returned 1 values: expected a list of 2"):
        load_function(f"{file}:short")({"completions": ["a", "b"]})


def test_what_is_no_reward_is_none_once_others_were(reward):
    assert reward("nan")(samples("good", "bad")) == Scores([1, None], errors=1)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{file}:lenght", "has no function 'lenght': did you mean 'length'"),
        ("{file}:not_a_function", "is a int, not a function"),
        ("{file}:Judge", "is a type, not a function"),
        ("{file}:", "expected file.py:name or package.module:name"),
        ("{folder}/missing.py:f", r"no such file: .*missing\.py"),
        ("no.such.module:f", r"no\.such\.module cannot be imported: ModuleNotFoundError"),
        (
            "{folder}/raises.py:f",
            r"cannot be imported: ZeroDivisionError.*\(raises.py, line 2: x = 1 / 0\)",
        ),
        ("{folder}/unread.py:f", r"cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot_be_found_is_said_before_the_run(file, spec, expected):
    (file.parent / "raises.py").write_text("\nx = 1 / 0\n")
    (file.parent / "unread.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=expected):
        load_function(spec.format(file=file, folder=file.parent))


@pytest.mark.parametrize(("name", "column"), [("mistaken", "anwser"), ("needs", "solution")])
def test_a_column_that_no_problem_has(reward, name, column):
    expected = rf"my_rewards.py:{name} asks for '{column}', a column .* has; there are answer, "
    with pytest.raises(ConfigError, match=expected + r".*difficulty, hint, .*question"):
        reward(name)


def test_a_function_that_takes_any_column_is_given_those_of_the_problems(reward):
    tells = reward("tells")  # answer, question, difficulty, prompts, completion_ids
    assert tells(samples("a")).values == [5]
    assert tells([*samples("a"), *samples("b", problem=OTHER)]).values == [6, 6]  # and hint
    assert reward("needs", problems=[replace(ONE, columns={"solution": 1})])(
        samples("a")
    ) == Scores([1])


def test_a_module_is_found_by_its_name():
    function = load_function("math:prod")
    assert (function.name, function.in_process) == ("prod", False)


def test_the_source_of_a_function_is_found_without_importing_it(file):
    assert source_file(f"{file}:length") == file
    assert source_file("antigravity:fly").name == "antigravity.py"
    assert source_file("r1train.rewards.custom.pool:f").name == "pool.py"
    for spec in ("accuracy", "sys:exit", "no.such:f", "json.decoder.no:f", "missing.py:f"):
        assert source_file(spec) is None
    assert "antigravity" not in sys.modules


def test_a_process_that_cannot_start_says_so(tmp_path):
    path = tmp_path / "once.py"
    path.write_text(
        textwrap.dedent(f"""
        import os
        assert os.getpid() == {os.getpid()}, "imported elsewhere"
        def f(completions): return [1.0]
        """)
    )
    reward = CustomReward(load_function(f"{path}:f"), RewardConfig(), PROBLEMS)
    with pytest.raises(RunError, match="cannot be imported: AssertionError: imported elsewhere"):
        reward(samples("a"))
    reward.close()


@linux
def test_a_function_does_not_outlive_the_trainer(tmp_path):
    command, environment = script(
        tmp_path,
        """
        import os, signal, time
        from r1train.rewards.custom.pool import FunctionPool

        def endless(completions):
            print(os.getpid(), flush=True)
            time.sleep(60)

        if __name__ == "__main__":
            pool = FunctionPool(__file__ + ":endless", 1, 60.0)
            signal.alarm(5)  # ends it without a word
            pool.run([{"completions": ["a"]}])
        """,
    )
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGALRM
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(ended.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_shares_are_of_about_one_size_and_whole_groups():
    batch = [s for problem in (ONE, OTHER) * 3 for s in samples(*"abcd", problem=problem)]
    assert [len(rows) for rows in split(batch, 1)] == [24]
    assert [len(rows) for rows in split(batch, 2)] == [12, 12]
    assert [len(rows) for rows in split(batch, 4)] == [8, 8, 8]
    assert [row for rows in split(batch, 5) for row in rows] == list(range(24))
    assert split(samples("a", "b"), 2) == [[0, 1]]


def test_the_decorator_returns_the_function():
    def function(completions):
        return []

    assert r1train.in_process(function) is function
    assert function.in_process
