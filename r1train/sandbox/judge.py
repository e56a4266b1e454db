"""What a program is worth: it is run against test cases, each in a box of its own.

No verdict is ever taken from a program: a box has the input of one test and gives what the program
wrote; what is expected stays outside, and the comparison too. A test that is code itself has a box
beside the program's, and asks it for values.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1train.sandbox.box import Box, Outcome, run_box, run_linked
from r1train.sandbox.cases import CallCase, Case, CheckCase, StdioCase
from r1train.sandbox.compare import same_output
from r1train.sandbox.inside.wire import line_of, packed
from r1train.sandbox.languages import compile_cpp, cpp_box, python_box
from r1train.sandbox.limits import Language, Limits, Result

MOST_TIMEOUTS = 4  # of a program, after which the rest of its tests is not run
_INSIDE = Path(__file__).parent / "inside"
_BESIDE = ("start.py", "wire.py")  # what the files of `inside` import
_SHOWN = 500  # characters of a message


def run_tests(
    program: str,
    language: Language,
    tests: Sequence[Case],
    limits: Limits | None = None,
    *,
    all_tests: bool = False,
) -> list[Result]:
    """One result for each test, in their order.

    What follows the first test that is not passed is "not run"; with `all_tests` all are run, until
    four ran out of time. C++ is compiled once, with limits of its own; where that fails, every
    result is "not compiled". Raises SandboxError where the machine failed, not the program, and
    ValueError where C++ is to be called by tests that only Python can be called by.
    """
    require_testable(language, tests)
    limits = limits or Limits()
    source = program.encode("utf-8", errors="replace")
    binary = None
    if language == "cpp":
        compiled = compile_cpp(source)
        if compiled.code != 0 or not compiled.output:
            return [Result("not compiled", _end(compiled), compiled.cpu_seconds)] * len(tests)
        binary = compiled.output
    results: list[Result] = []
    timeouts = 0
    for test in tests:
        failed = bool(results) and not results[-1].passed
        if (failed and not all_tests) or timeouts == MOST_TIMEOUTS:
            break
        results.append(_run(test, binary, source, limits))
        timeouts += results[-1].status == "timeout"
    return results + [Result("not run")] * (len(tests) - len(results))


def require_testable(language: Language, tests: Sequence[Case]) -> None:
    """Raises ValueError where programs of the language cannot be tested in this way."""
    if language == "cpp" and not all(isinstance(test, StdioCase) for test in tests):
        raise ValueError("C++ is tested by standard input and output alone")


def _run(test: Case, compiled: bytes | None, source: bytes, limits: Limits) -> Result:
    files = {"program.py": source}
    if isinstance(test, CheckCase):
        return _check(test, _python(files, "call.py", limits))
    if isinstance(test, CallCase):
        return _call(test, _python(files, "call.py", limits))
    if compiled is not None:
        return _standard_streams(test, cpp_box(compiled, limits))
    main = _python(files, "start.py", limits) if test.usual else python_box(files, limits)
    return _standard_streams(test, main)


def _standard_streams(test: StdioCase, box: Box) -> Result:
    outcome = run_box(box, test.input.encode())
    if (failed := _failed(outcome, box)) is not None:
        return failed
    output = outcome.output.decode(errors="replace")
    return _compared(same_output(output, test.output), output, test.output, outcome)


def _call(test: CallCase, box: Box) -> Result:
    call = {"function": test.function, "arguments": packed(list(test.arguments))}
    outcome = run_box(box, line_of(call | {"keywords": packed({})}).encode())
    if (failed := _failed(outcome, box)) is not None:
        return failed
    try:
        reply = json.loads(outcome.output)
        if "error" in reply:
            return Result(
                "error", ": ".join(map(str, reply["error"]))[:_SHOWN], outcome.cpu_seconds
            )
        value = _as_json(reply["value"])
        passed = any(value == right for right in test.accepted)
        return _compared(passed, repr(value), repr(test.accepted[0]), outcome)
    except (ValueError, TypeError, KeyError, RecursionError):  # not written by `call.py`
        return Result("wrong", "its reply is not of its function", outcome.cpu_seconds)


def _check(test: CheckCase, callee: Box) -> Result:
    files = {"test.py": test.test.encode(), "setup.py": test.setup.encode()}
    checker = _python(files, "check.py", callee.limits, test.entry_point)
    verdict, program = run_linked(checker, callee)
    if (failed := _failed(verdict, checker)) is None:
        return Result("passed", "", verdict.cpu_seconds + program.cpu_seconds)
    if failed.message.rpartition("\n")[2].startswith("AssertionError"):
        return Result("wrong", failed.message, failed.cpu_seconds)
    return _failed(program, callee) or failed  # why there was no answer, if the program knows


def _python(files: dict[str, bytes], main: str, limits: Limits, *arguments: str) -> Box:
    own = {name: (_INSIDE / name).read_bytes() for name in (main, *_BESIDE)}
    return python_box(files | own, limits, main, *arguments)


def _failed(outcome: Outcome, box: Box) -> Result | None:
    """What ended a program before it could be right; None where nothing did."""
    cpu, limit = outcome.cpu_seconds, box.limits.cpu_seconds
    if outcome.timed_out or outcome.code == -signal.SIGXCPU or cpu > limit:
        return Result("timeout", f"its time was up, after {cpu:.1f} s of processor time", cpu)
    if outcome.overflowed:
        return Result("output", f"more than {box.limits.output_bytes} bytes of output", cpu)
    return Result("error", _end(outcome), cpu) if outcome.code != 0 else None


def _compared(same: bool, output: str, expected: str, outcome: Outcome) -> Result:
    if same:
        return Result("passed", "", outcome.cpu_seconds)
    each = _SHOWN // 2
    shown = f"expected {expected.strip()[:each]!r}, not {output.strip()[:each]!r}"
    return Result("wrong", shown, outcome.cpu_seconds)


def _as_json(value: Any) -> Any:
    """What was packed (`inside/wire.py`), as JSON would have it: tuples are lists, keys are texts.

    It may be forged, and is read in the trainer: nothing is made of it but lists and texts, so that
    its size is that of what was read, and no table of it can be slow.
    """
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, items),) = value.items()
    if name == "tuple" and isinstance(items, list):
        return _as_json(items)
    if name == "dict" and isinstance(items, list):
        return {str(key): _as_json(item) for key, item in items}
    raise ValueError(f"a {name} is not JSON's")


def _end(outcome: Outcome) -> str:
    """How it ended, and the end of what it said."""
    code = outcome.code
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return f"{how}: {outcome.error.decode(errors='replace').strip()[-_SHOWN:]}"
