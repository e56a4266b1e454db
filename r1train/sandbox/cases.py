"""Test cases by the fields of a row that published data sets have them in.

| fields | data sets | the program |
|---|---|---|
| `input_output` (JSON: `inputs`, `outputs`, `fn_name`), or `inputs` and `outputs` | APPS, TACO | stdin → stdout; a function where there is `fn_name` |
| `public_test_cases`, `private_test_cases` (JSON, the latter perhaps packed), `metadata` (`func_name`) | LiveCodeBench | the same, by `testtype` |
| `test` (defines `check(candidate)`), `entry_point`, `prompt` | HumanEval | a function, called by the test from another box |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StdioCase:
    """What a program reads from standard input, and what it should write."""

    input: str
    output: str


@dataclass(frozen=True)
class CallCase:
    """A call of a function, of the program or of its class `Solution`, and what it should return."""

    function: str
    arguments: tuple[Any, ...]
    """Values of JSON."""
    output: Any


@dataclass(frozen=True)
class CheckCase:
    """Python that asserts what a function does: `test` defines `check(candidate)`."""

    entry_point: str
    test: str
    setup: str = ""
    """Definitions that the test uses: HumanEval's prompt."""


Case = StdioCase | CallCase | CheckCase


def read_tests(row: Mapping[str, Any]) -> tuple[Case, ...] | None:
    """The test cases of a row; None where it has none of the fields above.

    Raises ValueError saying what is wrong with them.
    """
    raise NotImplementedError
