"""LaTeX, Python's operators and Unicode's signs, written in one plain way."""

from __future__ import annotations

import re

_WRAPPERS = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathopen|mathclose|mathstrut"
    r"|rm|,|;|:|!|>|quad|qquad|enspace|thinspace|phantom\{\}| )(?![a-zA-Z])"
)
_SET_BUILDER = re.compile(  # of real numbers: {x | 2 < x < 5} is (2, 5)
    r"\s*[{⟦]\s*([a-z])\s*(?:∈\s*(?:\\mathbb\s*)?\{?R\}?\s*)?(?:\\mid|\\colon|[|:])\s*"
    r"((?=.*(?<![a-zA-Z\\])\1(?![a-zA-Z]))(?=.*[=<>≤≥]).+)[}⟧]\s*",
    re.DOTALL,
)
_REPLACED = [
    (re.compile(r"\\\\"), "\n"),  # first: what follows is no command
    (re.compile(r"\\(?:[dtc]frac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:[dt]binom)(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×⋅·∗✕]"), " * "),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))"), " * "),  # 3 x 10^8
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\div(?![a-zA-Z])|÷"), " / "),
    (re.compile(r"\\pm(?![a-zA-Z])|\+/-|\+-"), " ± "),
    (re.compile(r"\\mp(?![a-zA-Z])"), " ∓ "),
    (re.compile(r"\\(?:leq?(?:slant)?)(?![a-zA-Z])|<=|⩽"), " ≤ "),
    (re.compile(r"\\(?:geq?(?:slant)?)(?![a-zA-Z])|>=|⩾"), " ≥ "),
    (re.compile(r"\\lt(?![a-zA-Z])"), " < "),
    (re.compile(r"\\gt(?![a-zA-Z])"), " > "),
    (re.compile(r"\\(?:neq?)(?![a-zA-Z])|!="), " ≠ "),
    (re.compile(r"\\approx(?![a-zA-Z])|≈|=="), " = "),
    (re.compile(r"\\infty(?![a-zA-Z])"), " ∞ "),
    (re.compile(r"\\(?:cup|lor|vee)(?![a-zA-Z])|∨"), " ∪ "),
    (re.compile(r"\\(?:land|wedge)(?![a-zA-Z])|∧"), " and "),
    (re.compile(r"\\in(?![a-zA-Z])"), " ∈ "),
    (re.compile(r"\\(?:emptyset|varnothing)(?![a-zA-Z])"), " ∅ "),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|°|\{\s*°\s*\})|\\degree(?![a-zA-Z])"), "°"),
    (re.compile(r"\\%|(?<![a-zA-Z])(?:percent|per\s+cent|pct)\b"), "%"),
    (re.compile(r"\\(?:lbrace(?![a-zA-Z])|\{)"), "⟦"),
    (re.compile(r"\\(?:rbrace(?![a-zA-Z])|\})"), "⟧"),
    (re.compile(r"(?:\bUS)?\\?\$"), "$"),
    (re.compile(r"\bUS\s+(?=dollars?\b)"), ""),
    # One digit is a whole argument of LaTeX's: \\frac12 and \\sqrt2 and \\log_28.
    (re.compile(r"\\(frac|binom)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"\\(frac|binom)\s*(\d)\s*\{"), r"\\\1{\2}{"),
    (re.compile(r"\\(frac|binom)\s*(\{[^{}]*\})\s*(\d)"), r"\\\1\2{\3}"),
    (re.compile(r"\\(sqrt\s*(?:\[[^\[\]]*\])?|log_)\s*(\d)"), r"\\\1{\2}"),
    (re.compile(r"√"), r"\\sqrt "),
    (re.compile(r"\\(?:operatorname|mathop)\*?\s*\{\s*([a-zA-Z]+)\s*\}"), r"\\\1 "),
    (re.compile(r"(?<!~)~(?!~)"), " "),
    (re.compile(r"\A([^~]*)~~(?=[^~]*\Z)"), r"\1 "),  # but two on either side strike out
]


def plain(text: str) -> str:
    """The text with one sign for each operation: √ and \\frac stay commands, \\le is ≤."""
    for pattern, written in _REPLACED:
        text = pattern.sub(written, text)
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[2]
    return _WRAPPERS.sub(" ", text)
