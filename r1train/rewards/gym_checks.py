"""Checks of our own where a reasoning-gym verifier credits what is no answer.

`CHECKS` decide alone; `SHAPES` are what an answer must look like before the dataset's own verifier
sees it. Each row says what was credited.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1train.answers.clean import clean
from r1train.answers.nodes import Quantity
from r1train.answers.syntax import parse
from r1train.answers.tokens import Unreadable
from r1train.answers.values import NoValueError, exact
from r1train.verify import verify

Entry = dict[str, Any]
Check = Callable[[str, Entry], bool]


def _is(answer_type: str) -> Check:
    def check(answer: str, entry: Entry) -> bool:
        return verify(answer, entry["answer"] or "", answer_type=answer_type) == 1.0

    return check


def _looks_like(pattern: str) -> Check:
    compiled = re.compile(pattern)

    def check(answer: str, entry: Entry) -> bool:
        return compiled.fullmatch(answer.strip()) is not None

    return check


def _has_as_many(separator: str | None) -> Check:
    def check(answer: str, entry: Entry) -> bool:
        return len(answer.split(separator)) == len(entry["answer"].split(separator))

    return check


def _probability(answer: str, entry: Entry) -> bool:
    """The exact fraction, or a decimal of at least four right digits."""
    rational = entry["metadata"]["rational"]
    right = Fraction(rational["numerator"], rational["denominator"])
    written = (f"{right.numerator}/{right.denominator}", entry["answer"], f"{float(right):.4g}")
    return any(verify(answer, reference, answer_type="math") == 1.0 for reference in written)


_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(-?\d+)\s*/\s*(\d+)")


def _simplified(answer: str, entry: Entry) -> bool:
    """The fraction in lowest terms, which alone answers the question."""
    match = _FRACTION.fullmatch(clean(answer))
    if match is None:
        return False
    metadata = entry["metadata"]
    right = metadata["simplified_numerator"], metadata["simplified_denominator"]
    written = [group for group in match.groups() if group is not None]
    return written == [str(part) for part in right]


def _real_roots(answer: str, entry: Entry) -> bool:
    if entry["answer"]:
        return verify(answer, entry["answer"], answer_type="set") == 1.0
    return clean(answer).casefold() in ("none", "no solution", "no solutions", "no real solutions")


_ARITHMETIC = re.compile(r"[\d\s()+\-*/]+")


def _makes_24(answer: str, entry: Entry) -> bool:
    """Exactly 24, from the numbers given, each used once, by the operators given."""
    if not _ARITHMETIC.fullmatch(answer) or "**" in answer or "//" in answer:
        return False
    numbers = [int(number) for number in re.findall(r"\d+", answer) if len(number) < 10]
    try:
        form = parse(answer.strip())
        value = exact(form.value) if isinstance(form, Quantity) else None  # type: ignore[arg-type]
    except (Unreadable, NoValueError):
        return False
    return value == (24, 0) and sorted(numbers) == sorted(entry["metadata"]["numbers"])


_NAMES = re.compile(r"[^\W\d]\w*")
_CALCULUS = {"C", "E", "pi", "sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "sqrt"}
_CALCULUS |= {"sinh", "cosh", "tanh", "sec", "csc", "cot", "asinh", "acosh", "atanh"}


def _antiderivative(answer: str, entry: Entry) -> bool:
    """A function of the variable in closed form: `Integral(…)` only asks the question again."""
    known = _CALCULUS | {str(entry["metadata"]["variable"])}
    return all(
        name in known for name in _NAMES.findall(re.sub(r"\d+\.?\d*[eE][+-]?\d+", "0", answer))
    )


CHECKS: dict[str, Check] = {
    "advanced_geometry": _is("auto"),  # "(1.000, 2.000), 7" for a point
    "coin_flip": _probability,  # 0 for whatever is less than 1e-4
    "complex_arithmetic": _is("math"),  # "nan"
    "fraction_simplification": _simplified,  # "1/2 vs 3/4"
    "game_of_life_halting": _is("text"),  # any text
    "gsm_symbolic": _is("math"),  # "20 is wrong"
    "polynomial_equations": _real_roots,  # any text where there is no root
    "puzzle24": _makes_24,  # any four numbers, and 24.9
}
SHAPES: dict[str, Check] = {
    "intermediate_integration": _antiderivative,  # "Integral(…) + C"
    "kakurasu": _looks_like(r"[01\s]+"),  # words between the digits
    "knights_knaves": _looks_like(
        r"\w+ is an? \w+(?:(?:\s*,?\s*and\s+|\s*,\s*)\w+ is an? \w+)*\.?"
    ),  # "not …", "… is wrong"
    "letter_jumble": _has_as_many(None),  # further words
    "quantum_lock": _looks_like(r"(?i:[ABC](?:\s*(?:→|->|,|\s)\s*[ABC])*)"),  # other words
    "simple_integration": _antiderivative,
    "sokoban": _looks_like(r"[UDLR\s]+"),  # anything after the moves
    "survo": _looks_like(r"[\d\s-]+"),  # words between the digits
    "time_intervals": _looks_like(
        r"(?:\d+ days?)?(?:,?\s*\d+:\d\d(?::\d\d(?:\.\d+)?)?)?"
    ),  # "3 days, 01:04:00, 1"
    "word_sorting": _has_as_many(","),  # further words
}
