"""Checks of our own where a reasoning-gym verifier credits what is no answer.

`CHECKS` decide alone; `SHAPES` are what an answer must look like before the dataset's own verifier
sees it. Each row says what was credited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import chain, product
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


def _same_word(answer: str, entry: Entry) -> bool:
    """The reference but for case and spaces."""
    written = ("".join(text.split()).casefold() for text in (answer, entry["answer"]))
    return len(set(written)) == 1


def _json(text: str) -> Any:
    """The value of JSON, in which strings may have single quotes; None where it is none."""
    try:
        return json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return None


def _same_grid(answer: str, entry: Entry) -> bool:
    """The same JSON: no cell more, and none less."""
    return json.dumps(_json(answer)) == json.dumps(_json(entry["answer"]))


def _same_numbers(answer: str, entry: Entry) -> bool:
    """A list of the reference's numbers in its order."""
    found, right = _json(answer), _json(entry["answer"])
    if not isinstance(found, list) or not all(isinstance(x, str | int | float) for x in found):
        return False
    return len(found) == len(right) and all(map(_equal, map(str, found), map(str, right)))


def _equal(answer: str, reference: str, within: float = 0.0) -> bool:
    """Whether two decimals are as near as that."""
    decimal = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
    if not decimal.fullmatch(answer.strip()) or len(answer) > 100:
        return False
    return abs(Fraction(answer.strip()) - Fraction(reference)) <= within


def _same_pool(answer: str, entry: Entry) -> bool:
    """A matrix whose cells are the reference's, which have two decimals."""
    found, right = ([row.split() for row in m.splitlines()] for m in (answer, entry["answer"]))
    if [len(row) for row in found] != [len(row) for row in right]:
        return False
    cells = zip(chain(*found), chain(*right), strict=True)
    return all(_equal(cell, reference, within=0.005) for cell, reference in cells)


def _largest(answer: str, entry: Entry) -> bool:
    """The number itself, with or without separators of thousands."""
    return _thousands(answer, entry) and _equal(answer.replace(",", ""), entry["answer"])


_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")


def _thousands(answer: str, entry: Entry) -> bool:
    """Commas, if any, part thousands: 1,4 is not 14."""
    return "," not in answer or _GROUPED.fullmatch(answer.strip()) is not None


def _partitions(answer: str, entry: Entry) -> bool:
    """Every partition once."""
    found = _json(answer)
    return isinstance(found, list) and len(found) == len(entry["metadata"]["solution"])


_MOVES_A_BOX = re.compile(r"move\(box_\w+, (?:target_\w+|square\[\d+\.?\d*, \d+\.?\d*\])\)")


def _moves_boxes(answer: str, entry: Entry) -> bool:
    """Steps of which each moves a box: targets stay where they are."""
    steps = _json(answer)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return False
    moves = [move for step in steps for move in step.values()]
    return all(isinstance(move, str) and _MOVES_A_BOX.fullmatch(move) for move in moves)


def _letters_once(answer: str, entry: Entry) -> bool:
    """Each letter has one digit, once."""
    letters = [pair.partition("=")[0].strip() for pair in answer.split(",")]
    return len(letters) == len(set(letters))


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


def _makes(answer: str, numbers: list[int], target: int) -> bool:
    """Exactly the target, from the numbers given, each used once, by the operators given."""
    if not _ARITHMETIC.fullmatch(answer) or "**" in answer or "//" in answer:
        return False
    used = [int(number) for number in re.findall(r"\d+", answer) if len(number) < 10]
    try:
        form = parse(answer.strip())
        value = exact(form.value) if isinstance(form, Quantity) else None  # type: ignore[arg-type]
    except (Unreadable, NoValueError):
        return False
    return value == (target, 0) and sorted(used) == sorted(numbers)


def _makes_24(answer: str, entry: Entry) -> bool:
    return _makes(answer, entry["metadata"]["numbers"], 24)


def _makes_target(answer: str, entry: Entry) -> bool:
    return _makes(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


_NAMES = re.compile(r"[^\W\d]\w*")
_CALCULUS = {"C", "E", "pi", "sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "sqrt"}
_CALCULUS |= {"sinh", "cosh", "tanh", "sec", "csc", "cot", "asinh", "acosh", "atanh"}


_FORMULA = re.compile(r"[\w\s+\-*/^().,]+")
_FACTOR = r"(?:\d+|[A-Za-z](?:\s*\*\*\s*\d+)?)"
_TERM = rf"{_FACTOR}(?:\s*\*\s*{_FACTOR})*"


def _antiderivative(answer: str, entry: Entry) -> bool:
    """A function of the variable in closed form: `Integral(…)` only asks the question again. It is
    no program, of which a comment or a condition would be left out."""
    if not _FORMULA.fullmatch(answer):
        return False
    known = _CALCULUS | {str(entry["metadata"]["variable"])}
    return all(
        name in known for name in _NAMES.findall(re.sub(r"\d+\.?\d*[eE][+-]?\d+", "0", answer))
    )


_LONGEST_LOGIC = 500
"""Characters of a formula: reasoning-gym's parser takes quadratic time."""
_LOGIC = re.compile(r"(?:[A-Z]|[∨∧→↔¬()\s])+")


def _infers(answer: str, entry: Entry) -> bool:
    """A formula, and no premise over again, unless the conclusion that is known is one, too."""
    from reasoning_gym.logic.propositional_logic import Expression

    if len(answer) > _LONGEST_LOGIC or not _LOGIC.fullmatch(answer):
        return False
    metadata = entry["metadata"]
    values = [
        dict(zip(metadata["variables"], row, strict=True))
        for row in product((False, True), repeat=len(metadata["variables"]))
    ]

    def table(formula: str) -> list[bool]:
        return [Expression.from_string(formula).evaluate(row) for row in values]

    try:
        premises = [table(premise) for premise in metadata["premises"]]
        known = metadata.get("example_answer")
        return table(answer) not in premises or (known is not None and table(known) in premises)
    except (ValueError, KeyError, RecursionError):
        return False


CHECKS: dict[str, Check] = {
    "advanced_geometry": _is("auto"),  # "(1.000, 2.000), 7" for a point
    "calendar_arithmetic": _is("auto"),  # any number where the answer is -1
    "coin_flip": _probability,  # 0 for whatever is less than 1e-4
    "complex_arithmetic": _is("math"),  # "nan"
    "countdown": _makes_target,  # what is off by a hundred thousandth, "factorial(3)"
    "decimal_arithmetic": _is("math"),  # what is off by 0.001
    "figlet_font": _same_word,  # ten right letters and whatever follows
    "fraction_simplification": _simplified,  # "1/2 vs 3/4"
    "game_of_life": _same_grid,  # further rows and columns
    "game_of_life_halting": _is("text"),  # any text
    "gsm_symbolic": _is("math"),  # "20 is wrong"
    "number_format": _largest,  # what is off by less than 0.01
    "number_sorting": _same_numbers,  # numbers that are off by up to 1
    "polynomial_equations": _real_roots,  # any text where there is no root
    "pool_matrix": _same_pool,  # cells that are off by up to 1 %
    "puzzle24": _makes_24,  # any four numbers, and 24.9
    "spell_backward": _same_word,  # the letters and whatever follows, for some lengths
}
SHAPES: dict[str, Check] = {
    "boxnet": _moves_boxes,  # moved targets
    "chain_sum": _thousands,  # "1,4" for 14
    "cryptarithm": _letters_once,  # the letters twice
    "intermediate_integration": _antiderivative,  # "Integral(…) + C", "… # or …"
    "jugs": _looks_like(
        r'\[\s*(?:"(?:(?:fill|empty) [A-Z]|pour [A-Z]->[A-Z])"\s*(?:,\s*|(?=\])))+\]'
    ),  # "fill A is wrong"
    "kakurasu": _looks_like(r"[01\s]+"),  # words between the digits
    "knights_knaves": _looks_like(
        r"\w+ is an? \w+(?:(?:\s*,?\s*and\s+|\s*,\s*)\w+ is an? \w+)*\.?"
    ),  # "not …", "… is wrong"
    "letter_jumble": _has_as_many(None),  # further words
    "palindrome_partitioning": _partitions,  # partitions that repeat
    "polynomial_multiplication": _looks_like(
        rf"\s*[+-]?\s*{_TERM}(?:\s*[+-]\s*{_TERM})*\s*"
    ),  # "… if True else …", "expand((…)*(…))"
    "products": _thousands,
    "propositional_logic": _infers,  # "PREMISE ∨ is wrong", and premises copied
    "quantum_lock": _looks_like(r"(?i:[ABC](?:\s*(?:→|->|,|\s)\s*[ABC])*)"),  # other words
    "rubiks_cube": _looks_like(
        r"(?:(?:[LRDUBF]w?|[XYZMES])'?\d?(?:\s+|$))+"
    ),  # "3is 4wrong" behind the moves; and U99999999 took as long as it may
    "rush_hour": _looks_like(r"(?:[A-Z][+-]\d{1,2}[\s,]*)+"),  # words between the moves
    "simple_integration": _antiderivative,
    "sokoban": _looks_like(r"[UDLR\s]+"),  # anything after the moves
    "survo": _looks_like(r"[\d\s-]+"),  # words between the digits
    "time_intervals": _looks_like(
        r"(?:\d+ days?)?(?:,?\s*\d+:\d\d(?::\d\d(?:\.\d+)?)?)?"
    ),  # "3 days, 01:04:00, 1"
    "tower_of_hanoi": _looks_like(
        r"(?:\s*Move disk \d+ from Peg \d+ to Peg \d+\.?\s*(?:\n|$))+"
    ),  # words around the moves
    "word_sorting": _has_as_many(","),  # further words
}
