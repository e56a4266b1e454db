"""Test cases: their formats, what passes them, and what only pretends to."""

from __future__ import annotations

import base64
import json
import pickle
import time
import zlib

import pytest

from r1train.sandbox import judge
from r1train.sandbox.cases import CallCase, CheckCase, StdioCase, has_tests, read_tests
from r1train.sandbox.compare import same_output
from r1train.sandbox.extract import extract_program
from r1train.sandbox.judge import run_tests
from tests.r1train.boxes import QUICK, boxed

ADD = "print(sum(map(int, input().split())))"
SUMS = [StdioCase("1 2\n", "3\n"), StdioCase("2 5\n", "7\n")]
LCB = [{"input": "1 2", "output": "3", "testtype": "stdin"}]
FUNCTIONAL = [{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]


def statuses(program, tests, language="python", **options):
    return [result.status for result in run_tests(program, language, tests, QUICK, **options)]


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, (StdioCase("1", "2"),)),
        ({"input_output": '{"inputs": ["1"], "outputs": ["2"]}'}, (StdioCase("1", "2"),)),
        ({"inputs": [["1", "2"]], "outputs": [["3", 4]]}, (StdioCase("1\n2", "3\n4"),)),
        (
            {"input_output": {"inputs": [[[1], 2]], "outputs": [[3]], "fn_name": "f"}},
            (CallCase("f", ([1], 2), ([3], 3)),),
        ),
        ({"public_test_cases": json.dumps(LCB)}, (StdioCase("1 2", "3", True),)),
        (
            {
                "public_test_cases": json.dumps(FUNCTIONAL),
                "private_test_cases": base64.b64encode(
                    zlib.compress(pickle.dumps(json.dumps(LCB)))
                ).decode(),
                "metadata": '{"func_name": "add"}',
            },
            (CallCase("add", ([1, 2], 3), ([1, 2, 3],)), StdioCase("1 2", "3", True)),
        ),
        (
            {"test": "def check(c): ...", "entry_point": "f", "prompt": "def f():\n  '''?'''\n"},
            (CheckCase("f", "def check(c): ...", "def f():\n  '''?'''\n"),),
        ),
        (
            {"test": "t", "entry_point": "f", "prompt": "Write it:\n```python\nx = 1\n```\nNow."},
            (CheckCase("f", "t", "x = 1\n"),),
        ),
        ({"test": "t", "entry_point": "f", "prompt": "Write it."}, (CheckCase("f", "t"),)),
        ({"answer": "2", "test": "t", "inputs": ["1"]}, None),
        ({"input_output": "", "inputs": None, "test": ""}, None),
    ],
)
def test_test_cases_are_read(row, tests):
    assert read_tests(row) == tests
    assert has_tests(row) == (tests is not None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inputs": ["1"], "outputs": []}, "1 inputs, but 0 outputs"),
        ({"input_output": "{"}, "input_output: expected JSON"),
        ({"inputs": "1", "outputs": ["1"]}, "expected two lists"),
        ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "expected a list of arguments, not 1"),
        ({"public_test_cases": json.dumps(FUNCTIONAL)}, "no func_name in metadata"),
        ({"public_test_cases": "[{}]"}, "expected input and output"),
        ({"private_test_cases": "????"}, "neither JSON nor packed JSON"),
        ({"private_test_cases": base64.b64encode(b"cos\nsystem\n").decode()}, "neither JSON"),
    ],
)
def test_test_cases_that_cannot_be_used_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        read_tests(row)


def test_a_packed_text_that_would_run_something_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match="private_test_cases"):
        read_tests({"private_test_cases": packed})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("3", "3\n", True),
        (" 3 \n\n", "3", True),
        ("1 2\n3", "1 2 \n 3\n", True),
        ("1.0", "1", True),
        ("1e3 .5", "1000 0.50", True),
        ("-0", "0", True),
        ("yes", "Yes", False),
        ("1 2", "1\n2", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        ("1\n\n2", "1\n2", False),
        ("0.30000000000000004", "0.3", False),
        ("nan", "NaN", False),
        ("1_0", "10", False),
        ("١", "1", False),
        ("", "0", False),
        ("3\n3", "3", False),
        ("1e99999999999", "1e99999999998", False),
    ],
)
def test_outputs_are_compared_as_livecodebench_does(output, expected, same):
    assert same_output(output, expected) is same


@pytest.mark.parametrize(
    ("completion", "language", "program"),
    [
        ("```python\na\n```", "python", "a\n"),
        ("<think>\n```python\na\n```\n</think>\n```py\nb\n```\nDone.", "python", "b\n"),
        ("<think>```python\na\n```", "python", None),
        ("thoughts\n```python\na\n```\n</think>none", "python", None),
        ("```python\na\n```\nBetter:\n```Python3\nb\n```", "python", "b\n"),
        ("```python\na\n```\nIt prints:\n```\n3\n```", "python", "a\n"),
        ("```\na\n```", "python", "a\n"),
        ("```cpp\na\n```", "python", None),
        ("```cpp\na\n```\n```python\nb\n```", "cpp", "a\n"),
        ("```c++\na\n```", "cpp", "a\n"),
        ("```c++17\na\n```", "cpp", "a\n"),
        ("```python3.11\na\n```\n```3\n4\n```", "python", "a\n"),
        ("```python\na", "python", None),
        ("```python\na\n```\n```python\nb", "python", "a\n"),
        ("- list\n  ```python\n  a\n    b\n\n  c\n  ```", "python", "a\n  b\n\nc\n"),
        ("- list\n  ```python\n  a\n    b\n\n c\n  ```", "python", " a\n   b\n\nc\n"),
        ("1. So:\n    ```python\na:\n    b\n    ```", "python", "a:\n    b\n"),
        ("- list\n  ```python\n      a\n  ```", "python", "    a\n"),
        ("inline ```python a``` only", "python", None),
        ('```python title="a.py"\na\n```', "python", "a\n"),
        ("````python\na\n```\nb\n````", "python", "a\n```\nb\n"),
        ("~~~python\na\n```\n~~~", "python", "a\n```\n"),
        ("Heading\n~~~~~~~\n```python\na\n```", "python", "a\n"),
        ("~~~~ Heading ~~~~\n```python\na\n```", "python", "a\n"),
        ("~~~ {.python}\na\n~~~", "python", "a\n"),
        ("```python\na\n`````", "python", "a\n"),
        ("````python\na\n```", "python", None),
        ("print(1)", "python", None),
        ("", "python", None),
    ],
)
def test_the_program_is_the_last_block_of_its_language(completion, language, program):
    assert extract_program(completion, language) == program


def test_a_completion_of_fences_is_read_in_linear_time():
    start = time.process_time()
    assert extract_program("```python\n" * 100_000, "python") is None
    assert time.process_time() - start < 2


@boxed
def test_programs_are_run_until_one_test_is_not_passed():
    assert statuses(ADD, SUMS) == ["passed", "passed"]
    three = "input(); print(3)"
    assert statuses(three, [SUMS[0], SUMS[1], SUMS[0]]) == ["passed", "wrong", "not run"]
    every = statuses(three, [SUMS[0], SUMS[1], SUMS[0]], all_tests=True)
    assert every == ["passed", "wrong", "passed"]


@boxed
def test_livecodebench_s_imports_are_there_for_its_tests():
    program = "def f(n: List[int]): return f(n - 1) if n else gcd(6, 9)\nprint(f(3000), __name__)"
    assert statuses(program, [StdioCase("", "3 __main__", usual=True)]) == ["passed"]
    assert statuses(program, [StdioCase("", "3 __main__")]) == ["error"]


@boxed
def test_each_end_of_a_program_has_its_status():
    one = SUMS[:1]
    assert statuses("print(", one) == ["error"]
    assert statuses("print(3); exit(1)", one) == ["error"]
    assert statuses("print(3); exit()", one) == ["passed"]
    assert statuses("import os; os._exit(0)", one) == ["wrong"]
    assert statuses("print(3, flush=True); import os; os.abort()", one) == ["error"]
    assert statuses("while True: print(3)", one) == ["output"]
    assert statuses("import numpy", one) == ["error"]
    (result,) = run_tests("print(4)", "python", one, QUICK)
    assert result.message == "expected '3', not '4'"


@boxed
def test_after_four_time_outs_the_rest_is_not_run(monkeypatch):
    monkeypatch.setattr(judge, "MOST_TIMEOUTS", 1)
    endless = "if input() == '1 2': print(3)\nelse:\n  while True: pass"
    found = statuses(endless, [SUMS[0], SUMS[1], SUMS[0]], all_tests=True)
    assert found == ["passed", "timeout", "not run"]


@boxed
def test_cpp_is_compiled_once_and_run(monkeypatch):
    compiled = []
    original = judge.compile_cpp
    monkeypatch.setattr(judge, "compile_cpp", lambda s: compiled.append(s) or original(s))
    add = '#include <cstdio>\nint main(){int a,b;scanf("%d%d",&a,&b);printf("%d\\n",a+b);}'
    assert statuses(add, SUMS, "cpp") == ["passed", "passed"]
    assert len(compiled) == 1
    assert statuses("int main() {", SUMS, "cpp") == ["not compiled", "not compiled"]
    with pytest.raises(ValueError, match="standard input and output alone"):
        run_tests(add, "cpp", [CallCase("f", (), (1,))], QUICK)


@boxed
@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("class Solution:\n  def f(self, a: List[int], b: int):\n    return a + [b]", "passed"),
        ("def f(a, b): return (*a, b)", "passed"),
        ("def f(a, b):\n  print('seen')\n  a.append(b)\n  return a", "passed"),
        ("def f(a, b): return [1, 2]", "wrong"),
        ("def f(a, b): return object()", "error"),
        ("def f(a, b): 1 / 0", "error"),
        ("def g(a, b): return [1, 2, 3]", "error"),
        ("import os\nos.write(1, b'{\"value\": [1]}')\nos._exit(0)", "wrong"),
        ("import os\nos.write(1, b'[' * 50000)\nos._exit(0)", "wrong"),
        ("import os\nos._exit(0)", "wrong"),
        ('import os\nos.write(1, b\'{"value": {"bytes": 99999999999}}\')\nos._exit(0)', "wrong"),
        ('import os\nos.write(1, b\'{"value": {"tuple": 9}}\')\nos._exit(0)', "wrong"),
        ("import os\nos.write(1, b'{\"value\": ' + b'[' * 900 + b']' * 900)", "error"),
        ("def f(a, b):\n  for _ in range(600): a = [a]\n  return a", "wrong"),
        ("def f(a, b): return {1, 2, 3}", "wrong"),
    ],
)
def test_functions_are_called(program, status):
    assert statuses(program, [CallCase("f", ([1, 2], 3), ([1, 2, 3],))]) == [status]


CHECK = """
def check(candidate):
    assert candidate([3, 1]) == [1, 3]
    assert candidate([]) == [], "empty"
    assert all(map(lambda n: candidate([n]) == [n], range(3)))
    assert abs(candidate([helper(2.5)])[0] - 5) < 1e-6
"""
HELPER = "def helper(x):\n    return 2 * x\n\n\ndef f(x):\n    '''Sort.'''\n"


@boxed
@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(x): return sorted(x)", "passed"),
        ("def f(x): return x", "wrong"),
        ("def f(x): return tuple(sorted(x))", "wrong"),
        ("def f(x): return (sorted(x) if x else None)", "wrong"),
        ("def f(x): raise StopIteration", "error"),
        ("def f(x): raise SystemExit(0)", "error"),
        ("def f(x): raise AssertionError", "error"),
        ("def f(x):\n  import os\n  os._exit(0)", "error"),
        ("import sys\nsys.exit(0)", "error"),
        (
            "class Any(list):\n  def __eq__(self, o): return True\n"
            "  def __getitem__(self, i): return 5\ndef f(x): return Any()",
            "wrong",
        ),
        ("import builtins\nbuiltins.AssertionError = SystemExit\ndef f(x): return 0", "wrong"),
        ("def helper(x): return 0\ndef f(x): return [0.0] if x == [5.0] else sorted(x)", "wrong"),
        (
            "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1",
            "wrong",
        ),
        (
            "import os\ndef f(x):\n  for d in range(99):\n"
            "    try: os.write(d, b'{\"value\": true}\\n')\n"
            "    except OSError: pass\n  os._exit(0)",
            "wrong",
        ),
    ],
)
def test_checks_ask_a_program_from_another_box(program, status):
    assert statuses(program, [CheckCase("f", CHECK, HELPER)]) == [status]


@boxed
def test_what_is_expected_is_nowhere_in_the_box():
    """Not in its files, its memory, its frames or its descriptors."""
    secret = "a-value-that-nobody-guesses"
    search = """
import gc, os, sys
def search(*_):
    seen = [repr(dict(os.environ)), repr(sys.argv)]
    for top in ("/box", "/tmp", "/dev/shm", "/proc"):
        for folder, _, files in os.walk(top):
            for name in files:
                try:
                    seen.append(open(f"{folder}/{name}", errors="replace").read())
                except OSError:
                    pass
    frame = sys._getframe()
    while frame:
        seen += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    seen += [text for text in gc.get_objects() if isinstance(text, str)]
    seen += [repr(thing) for thing in gc.get_objects() if type(thing) in (list, dict, tuple)]
    mark = "-that-" + "nobody-"
    for text in seen:
        if mark in text:
            at = text.index(mark)
            return text[at - 7 : at + 20]
"""
    tests = (
        StdioCase("", secret),
        CallCase("search", (), (secret,)),
        CheckCase("search", f"def check(c):\n    assert c() == {secret!r}"),
    )
    found = [statuses(search + "print(search())", [test])[0] for test in tests]
    assert found == ["wrong"] * 3
    given = StdioCase(secret, secret)  # the search finds what is there
    assert statuses(search + "held = [input()]\nprint(search())", [given]) == ["passed"]
