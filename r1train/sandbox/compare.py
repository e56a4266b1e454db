"""Whether what a program wrote is what a test expects, as LiveCodeBench compares it."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_LONGEST = 1000  # characters of a number that is compared by its value


def same_output(output: str, expected: str) -> bool:
    """Line by line, without the spaces around each and the blank lines at both ends; two lines of
    numbers alone are the same where their numbers are, as exact decimals: 1.0 is 1."""
    given, wanted = (text.strip().split("\n") for text in (output, expected))
    return len(given) == len(wanted) and all(
        line.strip() == right.strip() or _same_numbers(line, right)
        for line, right in zip(given, wanted, strict=True)
    )


def _same_numbers(line: str, right: str) -> bool:
    given, wanted = line.split(), right.split()
    return len(given) == len(wanted) and all(
        _is_number(one) and _is_number(other) and Decimal(one) == Decimal(other)
        for one, other in zip(given, wanted, strict=True)
    )


def _is_number(text: str) -> bool:
    return len(text) <= _LONGEST and _NUMBER.fullmatch(text) is not None
