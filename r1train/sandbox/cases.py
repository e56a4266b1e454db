"""Test cases by the fields of a row that published data sets have them in.

| data sets | fields | tested is |
|---|---|---|
| APPS, TACO | `inputs`, `outputs` (also as JSON in `input_output`) | stdin → stdout |
| | the same with `fn_name` | that function |
| LiveCodeBench | `public_test_cases`, `private_test_cases` | stdin → stdout |
| | the same, "functional" by `testtype`, and `metadata` | the function `func_name` |
| open-r1 | `verification_info`: `test_cases`, each an `input` and an `output` | stdin → stdout |
| | the same with `fn_name` | that function |
| HumanEval | `test` (it defines `check(candidate)`), `entry_point`, `prompt` | `entry_point` |
"""

from __future__ import annotations

import ast
import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pickletools import genops
from typing import Any

from r1train.sandbox.extract import fenced_blocks
from r1train.sandbox.limits import Language


@dataclass(frozen=True)
class StdioCase:
    """What a program reads from standard input, and what it should write."""

    input: str
    output: str
    usual: bool = False
    """LiveCodeBench's: a Python program finds its imports done (`inside/start.py`)."""


@dataclass(frozen=True)
class CallCase:
    """A call of a function, or of a method of the class `Solution`, and what it should return."""

    function: str
    arguments: tuple[Any, ...]
    """Values of JSON."""
    accepted: tuple[Any, ...]
    """Values of JSON, any of which is right."""


@dataclass(frozen=True)
class CheckCase:
    """Python that asserts what a function does: `test` defines `check(candidate)`."""

    entry_point: str
    test: str
    setup: str = ""
    """Definitions that the test uses: HumanEval's prompt."""


Case = StdioCase | CallCase | CheckCase


FIELDS = (
    *("input_output", "inputs", "public_test_cases", "private_test_cases", "test"),
    "verification_info",
)
"""One of them makes a row one with test cases."""
LANGUAGES: dict[str, Language] = {
    **{"python": "python", "python3": "python", "py": "python"},
    **{"cpp": "cpp", "c++": "cpp", "c++17": "cpp"},
}
"""By the names that rows have for them."""


def has_tests(row: Mapping[str, Any]) -> bool:
    """Whether a row has test cases, as far as its fields say."""
    beside = {"inputs": "outputs", "test": "entry_point"}
    own = {**row, "verification_info": _verification(row).get("test_cases")}
    return any(own.get(name) and (own.get(beside.get(name, name)) is not None) for name in FIELDS)


def language_of(row: Mapping[str, Any]) -> Language | None:
    """The language that a row wants its program in, where it says one (`verification_info` does;
    a field `language` is that of the question). Raises ValueError where it is none of `LANGUAGES`.
    """
    said = _verification(row).get("language")
    if said is None:
        return None
    if str(said).lower() not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise ValueError(f"verification_info.language is {said!r}: expected one of {known}")
    return LANGUAGES[str(said).lower()]


def _verification(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("verification_info")
    return found if isinstance(found, Mapping) else {}


def read_tests(row: Mapping[str, Any]) -> tuple[Case, ...] | None:
    """The test cases of a row; None where it has none of the fields above.

    Raises ValueError saying what is wrong with them.
    """
    if not has_tests(row):
        return None
    if row.get("input_output"):
        return _pairs(_parsed(row["input_output"], "input_output"))
    if row.get("inputs") and "outputs" in row:
        return _pairs(row)
    if row.get("public_test_cases") or row.get("private_test_cases"):
        return _livecodebench(row)
    if tests := _verification(row).get("test_cases"):
        return _verified(tests)
    setup = _definitions(str(row.get("prompt", "")))
    return (CheckCase(str(row["entry_point"]), str(row["test"]), setup),)


def _pairs(tests: Mapping[str, Any]) -> tuple[Case, ...] | None:
    """Of APPS and TACO: two lists, and the name of a function or none."""
    inputs, outputs, function = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError("test cases: expected two lists, inputs and outputs")
    if len(inputs) != len(outputs):
        raise ValueError(f"test cases: {len(inputs)} inputs, but {len(outputs)} outputs")
    pairs = zip(inputs, outputs, strict=True)
    if not function:
        return tuple(StdioCase(_text(given), _text(right)) for given, right in pairs) or None
    return tuple(_call(str(function), given, right) for given, right in pairs) or None


def _call(function: str, given: Any, right: Any) -> CallCase:
    if isinstance(given, str):  # LiveCodeBench: an argument a line
        lines = [line for line in given.split("\n") if line.strip()]
        arguments = tuple(_parsed(line, "an argument") for line in lines)
        return CallCase(function, arguments, (_parsed(right, "an output"),))
    if not isinstance(given, list):
        raise ValueError(f"test cases: expected a list of arguments, not {given!r}")
    alone = right[0] if isinstance(right, list) and len(right) == 1 else right
    return CallCase(function, tuple(given), (right, alone))  # APPS wraps some in a list


def _livecodebench(row: Mapping[str, Any]) -> tuple[Case, ...] | None:
    metadata = _parsed(row.get("metadata") or {}, "metadata")
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    cases: list[Case] = []
    for name in ("public_test_cases", "private_test_cases"):
        tests = _parsed(_unpacked(row.get(name) or []), name)
        if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
            raise ValueError(f"{name}: expected a list of objects")
        for test in tests:
            given, right = test.get("input"), test.get("output")
            if not isinstance(given, str) or not isinstance(right, str):
                raise ValueError(f"{name}: expected input and output, which are texts")
            if test.get("testtype") != "functional":
                cases.append(StdioCase(given, right, usual=True))
            elif function:
                cases.append(_call(function, given, right))
            else:
                raise ValueError(f"{name}: a functional test, but no func_name in metadata")
    return tuple(cases) or None


def _verified(tests: Any) -> tuple[Case, ...]:
    """Of open-r1: a list of objects."""
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in tests):
        raise ValueError("verification_info.test_cases: expected a list of objects")
    cases: list[Case] = []
    for test in tests:
        given, right, function = test.get("input"), test.get("output"), test.get("fn_name")
        if given is None or right is None:
            raise ValueError("verification_info.test_cases: expected input and output in each")
        plain = StdioCase(_text(given), _text(right))
        cases.append(_call(str(function), given, right) if function else plain)
    return tuple(cases)


def _unpacked(tests: Any) -> Any:
    """LiveCodeBench's private tests are a pickled text, compressed, in base64. Reading the text out
    of the pickle's opcodes runs nothing."""
    if not isinstance(tests, str) or tests.lstrip().startswith("["):
        return tests
    try:
        data = zlib.decompress(base64.b64decode(tests, validate=True))
        texts = [value for code, value, _ in genops(data) if "UNICODE" in code.name]
    except (ValueError, zlib.error) as error:
        raise ValueError(f"private_test_cases: neither JSON nor packed JSON ({error})") from None
    if len(texts) != 1:
        raise ValueError("private_test_cases: expected one packed text")
    return texts[0]


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON: {error}") from None


def _text(value: Any) -> str:
    """What is read or written: a text, or a list of its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _definitions(prompt: str) -> str:
    """The prompt where it is Python, or the Python in it: some tests use its other functions."""
    for text in (prompt, *(block for _, block in fenced_blocks(prompt))):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return text
    return ""
