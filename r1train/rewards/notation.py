"""What is written in Latin letters in any language: names of points, functions, units, code.

Functions and units are told by their names, which say nothing else. The rest only looks like
notation: capitals may be words, and a word may stand behind an equals sign. English words without
which no sentence is made are none of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import regex

Notation = Literal["no", "maybe", "yes"]

_NAMED = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim limsup liminf "
    "max min sup inf arg argmax argmin mod gcd lcm gcf hcf det tr dim ker deg sgn sqrt "
    "mm cm dm km nm mg kg ml mL dl cl kJ kW kWh Hz kHz MHz GHz kN Pa kPa MPa eV mol rad "
    "kB MB GB ms ns"
)
_ENGLISH = (
    "the of and to is are was we so if it that this these for have has not but then thus with or "
    "as at by from on will can let now get must what each all you there which when than add"
)
NAMED, ENGLISH = frozenset(_NAMED.split()), frozenset(_ENGLISH.split())
_POINTS = regex.compile(r"[A-Z](?:['’]?[A-Z]){1,4}")
"""AB, ABC, A'B', GPU."""
_SIGN = "=+^≤≥≠≈±×÷√∈∉⊂⊆∩∪∠△⊥∥≌≅∽"
_LATIN = regex.compile(r"\p{Latin}")
_ARGUMENT = regex.compile(r"[A-Za-z0-9_][(\[]")
_STATEMENTS = {"def", "class", "return", "import", "from", "for", "while", "if", "elif", "else"}
_KEYWORDS = _STATEMENTS | {"in", "is", "and", "or", "not", "as"}


def notation(word: str, before: str, after: str, *, code: bool) -> Notation:
    """Whether a Latin word is notation: by itself, by the few characters before and after it, or as
    a part of a line of `code`."""
    if word in NAMED:
        return "yes"
    if code:
        return "maybe"
    if word.casefold() in ENGLISH:
        return "no"
    return "maybe" if _POINTS.fullmatch(word) or _among_signs(before, after) else "no"


def is_code(line: str) -> bool:
    """Whether the line is a statement: it begins with a keyword, and no two other words stand side
    by side in it, as they do in English that begins with "for" or "if"."""
    chunks = [chunk.strip(":,") for chunk in line.split()]
    if not chunks or chunks[0] not in _STATEMENTS or not line.isascii():
        return False
    plain = [chunk.isalpha() and chunk not in _KEYWORDS for chunk in chunks]
    return not any(left and right for left, right in pairwise(plain))


def _among_signs(before: str, after: str) -> bool:
    """Whether a sign of formulas or a call's bracket is on one side, and no Latin letter on the
    other."""
    left, right = before.rstrip(" ")[-1:], after.lstrip(" ")[:1]
    if _LATIN.match(left) or _LATIN.match(right):
        return False
    called = after.startswith("(") or _ARGUMENT.fullmatch(before[-2:]) is not None
    return called or any(side and side in _SIGN for side in (left, right))
