"""The numbers, names and signs of a text."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from r1train.answers.clean import closing_brace
from r1train.answers.nodes import Number
from r1train.answers.units import is_known

_MOST_DIGITS = 1000
_LARGEST_EXPONENT = 1000

_GREEK_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
_GREEK = frozenset(_GREEK_NAMES.split())
_GREEK_LETTERS = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi",
    "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi",
}  # fmt: skip
_FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh exp ln log lg abs
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_NAMES = {"pi", "sqrt", "cbrt", "inf", "infty", "infinity", "oo", "and", "or", *FUNCTIONS}
_NAMES |= {name for name in _GREEK if len(name) > 2}


class Unreadable(ValueError):
    """The text is not mathematics that this grammar knows."""


class Token(NamedTuple):
    kind: str
    """number, name, word, unit, command, or the character itself."""
    text: str
    spaced: bool
    """Whether white space stands before it."""
    value: Number | None = None


_AFTER_WHOLE = (
    r"(?P<part>\.\d*)?(?P<repeat>\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d))?"
    r"(?P<power>[eE][+-]?\d+(?![\w.]))?"
)
_NUMBER = re.compile(r"(?P<whole>\d*)" + _AFTER_WHOLE)
_THOUSANDS = re.compile(r"(?P<whole>\d{1,3}(?:,\d{3})+(?!,?\d))" + _AFTER_WHOLE)
_LETTERS = re.compile(r"[A-Za-z]+")
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_TEXT_COMMANDS = frozenset(
    ["text", "mathrm", "textrm", "mbox", "textbf", "mathbf", "textit", "mathit", "hbox"]
)
_LIMITED = "+-*/^_=<>≤≥≠±∓∪∈∅∞()[]{}⟦⟧|,;!%°&'"


def tokens(text: str, commas: bool) -> list[Token]:
    """The tokens of a text that `plain` has written; raises Unreadable."""
    found: list[Token] = []
    position, depth = 0, 0
    while position < len(text):
        start = position
        while position < len(text) and text[position] in " \t":
            position += 1
        if position == len(text):
            break
        spaced, character = position > start, text[position]
        if character.isdigit() or (
            character == "." and text[position + 1 : position + 2].isdigit()
        ):
            token, position = _number(text, position, commas and depth == 0, spaced)
        elif character in "$€£¥₹¢Ω":
            token, position = Token("unit", character, spaced), position + 1
        elif character == "\n":
            token, position = Token(";", "\n", spaced), position + 1
        elif micro := _micro_unit(text, position, found):
            token, position = Token("word", micro, spaced), position + len(micro)
        elif unit := _chinese_unit(text, position, found):
            token, position = Token("word", unit, spaced), position + len(unit)
        elif character in _GREEK_LETTERS:
            token, position = Token("name", _GREEK_LETTERS[character], spaced), position + 1
        elif letters := _LETTERS.match(text, position):
            token, position = _word(letters.group(), spaced), letters.end()
        elif character == "\\":
            token, position = _command(text, position, spaced)
        elif character in _LIMITED:
            depth += (character in "([{⟦") - (character in ")]}⟧")
            token, position = Token(character, character, spaced), position + 1
        else:
            raise Unreadable(f"unexpected {character!r}")
        found.append(token)
    return found


def _micro_unit(text: str, position: int, before: list[Token]) -> str:
    """um for the μm behind a number, "" for any other μ."""
    letters = _LETTERS.match(text, position + 1)
    if text[position] != "μ" or letters is None or not before or before[-1].kind != "number":
        return ""
    unit = "u" + letters.group()
    return unit if is_known(unit) else ""


def _chinese_unit(text: str, position: int, before: list[Token]) -> str:
    """The unit behind a number or a stroke, 元 of 5元, "" for any other word."""
    word = _CHINESE.match(text, position)
    if word is None or not before or before[-1].kind not in ("number", "/"):
        return ""
    return word.group() if is_known(word.group()) else ""


def _number(text: str, position: int, commas: bool, spaced: bool) -> tuple[Token, int]:
    match = (commas and _THOUSANDS.match(text, position)) or _NUMBER.match(text, position)
    assert match is not None
    whole, part, repeat, power = match.group("whole", "part", "repeat", "power")
    whole, part = whole.replace(",", ""), (part or "").removeprefix(".")
    if len(whole) > 1 and whole.startswith("0"):
        raise Unreadable("a number does not start with 0")  # but a code does
    if len(whole) + len(part) > _MOST_DIGITS or text[match.end() : match.end() + 1] == ".":
        raise Unreadable("too long, or a version")
    exponent = int(power[1:]) if power and len(power) < 7 else 0
    if abs(exponent) > _LARGEST_EXPONENT or (power and len(power) >= 7):
        raise Unreadable("too large an exponent")
    value = Fraction(int(whole + part or "0")) * Fraction(10) ** (exponent - len(part))
    place = exponent - len(part) if part or power else None
    if repeat:
        digits = re.sub(r"\D", "", repeat)
        value += Fraction(int(digits), 10 ** len(digits) - 1) * Fraction(10) ** -len(part)
        place = None
    return Token("number", match.group(), spaced, Number(value, place)), match.end()


def _word(letters: str, spaced: bool) -> Token:
    lower = letters.lower()
    if len(letters) == 1:
        return Token("name", letters, spaced)
    if letters in _NAMES or lower in ("and", "or", "inf", "infinity", "sqrt", "pi"):
        return Token("name", letters if letters in _NAMES else lower, spaced)
    return Token("word", letters, spaced)


def _command(text: str, position: int, spaced: bool) -> tuple[Token, int]:
    match = _COMMAND.match(text, position)
    if match is None:
        raise Unreadable("a backslash at the end")
    name, position = match.group()[1:], match.end()
    if name == "\\":
        return Token(";", "\\\\", spaced), position
    if name in _TEXT_COMMANDS:
        opening = position + len(text[position:]) - len(text[position:].lstrip())
        end = closing_brace(text, opening)
        if text[opening : opening + 1] != "{" or end < 0:
            raise Unreadable(f"\\{name} without an argument")
        content = text[opening + 1 : end].strip().replace("\\", "")
        if not re.search(r"[^\W\d_]", content) or re.search(r"\d", content):
            raise Unreadable(f"\\{name} of no words")
        if content.lower().strip(" ,") in ("and", "or"):
            return Token("name", content.lower().strip(" ,"), spaced), end + 1
        known = content if content in _NAMES or len(content) == 1 else None
        return Token("name" if known else "word", content, True), end + 1
    if name in _NAMES or name in _GREEK:
        return Token("name", name, spaced), position
    return Token("command", name, spaced), position
