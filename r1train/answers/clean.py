"""One spelling for what is written in many: Unicode, LaTeX and Markdown around and in an answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

_INVISIBLE = dict.fromkeys([0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFE0E, 0xFE0F, 0xFEFF])
_WITHOUT_INK = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0", "\U0001d159"}  # letters, symbols
_MOST_MARKS = 30
"""On one character: those of stream-safe text (UAX #15). Sorting more takes quadratic time."""
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SMALL_FRACTION = re.compile("(?<![⁰¹²³⁴-⁹])([⁰¹²³⁴-⁹]+)[⁄∕/]([₀-₉]+)")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–—―﹣－", "-"),
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("“”„«»", '"'),
        "⁄": "/",
        "∕": "/",
    }
)
# Digits in groups of three: 1\,000 and 1{,}000 and thin or unbreakable spaces.
_GROUP = r"(?:\\,|\\!|\{,\}|,\\!|\u2009|\u202f|\u00a0)"
_GROUPED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)")
_LEAD_IN = re.compile(
    r"\**(?:so|thus|hence|therefore)?,?\s*(?:the\s+|my\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer(?:\s+is)?|(?:option|choice)\s+is)\**(?:\s*[:=]\**\s*|\s+)(?=\S)|####\s+"
    r"|\**(?:所以|因此)?[，,]?(?:最终|正确)?答案\**\s*(?:[是为]\s*[:：]?|[:：])\**\s*(?=\S)",
    re.IGNORECASE,
)
_FORMULA = re.compile(  # amid words; two prices are none, nor digits side by side
    r"(?<![\d\\$])(?<!\\\))"
    r"(?:\$(?![\s$])([^$]*[^\s$\\])\$|\\\(((?:[^\\]|\\(?![()]))+)\\\))(?![\d$]|\\\()"
)
_BOX = re.compile(
    r"\\(?:boxed|fbox|text|mathrm|textbf|mathbf|textit|textrm|mbox|bf|bm|boldsymbol|emph|texttt"
    r"|underline)\s*\{"
)
_PAIRS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("***", "***"), ("**", "**"),
    ("__", "__"), ("*", "*"), ("_", "_"), ("```", "```"), ("`", "`"), ('"', '"'), ("'", "'"),
)  # fmt: skip
_MOST_WRAPPERS = 12
_TAIL = re.compile(  # from its end, so that it is read once
    r"(?:[.,;:]\\(?!\\)|\s+\\?|\\(?=[\s\d}])"  # LaTeX's spaces
    r"|\\\\(?!\Z)"  # its line's end, but one that is all there is
    r"|[.,;:。]|!(?=[^\W\d_]{2}))*"  # but n! is a factorial
)
_ELLIPSIS = re.compile(r"(?:\d|[^\w\s.。])(?:\s*[.。]){3,}")  # of a number or a list that goes on


def clean(text: str) -> str:
    """The answer in `text`, without what only wraps it; "" where there is none.

    Wrappers are LaTeX's and Markdown's (`$…$`, `\\boxed{…}`, `**…**`), quotes, "The answer is" and
    the punctuation that ends a sentence. A text with control characters is no answer.
    """
    text = _unicode(text)
    for _ in range(_MOST_WRAPPERS):
        before = text
        text = _unwrap(_strip(text))
        text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
        if text == before:
            break
    return text


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: spaces, marks without a letter, and what has no ink."""
    return not any(unicodedata.category(c)[0] in "LNPS" and c not in _WITHOUT_INK for c in text)


def _unicode(text: str) -> str:
    text = text.translate(_INVISIBLE).replace("\r\n", "\n")
    if any(unicodedata.category(c) in _UNPRINTABLE and c not in "\n\t" for c in text):
        return ""
    runs = groupby(text, key=lambda c: unicodedata.combining(c) != 0)
    if any(marks and sum(1 for _ in run) > _MOST_MARKS for marks, run in runs):
        return ""
    text = _GROUPED.sub(lambda match: re.sub(r"[^\d]", "", match.group()), text)
    text = _SMALL_FRACTION.sub(_plain_fraction, text)
    text = _scripts(text, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", _SUPERSCRIPTS, "^")
    text = _scripts(text, "₀₁₂₃₄₅₆₇₈₉₊₋", _SUBSCRIPTS, "_")
    text = "".join(map(_fraction, text))
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    return "".join(str(unicodedata.decimal(c, c)) for c in text)  # ٣ is 3


def _scripts(text: str, characters: str, table: dict[int, int], mark: str) -> str:
    def write(match: re.Match[str]) -> str:
        return f"{mark}{{{match.group().translate(table)}}}"

    return re.sub(f"[{characters}]+", write, text)


def _plain_fraction(match: re.Match[str]) -> str:
    return f" {match[1].translate(_SUPERSCRIPTS)}/{match[2].translate(_SUBSCRIPTS)} "


def _fraction(character: str) -> str:
    # NFKC would write 1½ as 11⁄2.
    written = unicodedata.normalize("NFKC", character)
    return f" {written}" if "⁄" in written and len(written) > 1 else character


def _strip(text: str) -> str:
    text = text.lstrip()
    end = len(text) - _TAIL.match(text[::-1]).end()  # type: ignore[union-attr]
    for goes_on in _ELLIPSIS.finditer(text, max(end - 1, 0)):
        end = goes_on.end()
    return text[:end]


def unpaired(text: str) -> str:
    """`text` without one pair of marks around all of it: $…$, **…**, quotes."""
    for opening, closing in _PAIRS:
        if not text.startswith(opening) or not text.endswith(closing):
            continue
        inner = text[len(opening) : -len(closing)]
        once = opening not in inner and closing not in inner and not inner.endswith("\\")
        if once and inner.strip():
            return inner.strip()
    return text


def _unwrap(text: str) -> str:
    inner = unpaired(text)
    if inner != text:
        return inner
    box = _BOX.match(text)
    if box and closing_brace(text, box.end() - 1) == len(text) - 1:
        return text[box.end() : -1].strip()
    return _FORMULA.sub(lambda formula: formula[1] or formula[2], text)


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \\ are one thing each


def closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` closes; -1 where it does not."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        if len(brace.group()) == 1:
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return brace.start()
    return -1


def depths(text: str, brackets: tuple[str, str] = ("([{", ")]}")) -> Iterator[tuple[str, int]]:
    """Each character, and how many brackets are open behind it."""
    depth = 0
    for character in text:
        depth += (character in brackets[0]) - (character in brackets[1])
        yield character, depth


def split(text: str, separators: str) -> list[str]:
    """The parts between those of the separators that are outside all brackets."""
    parts = [""]
    for character, depth in depths(text):
        if depth == 0 and character in separators:
            parts.append("")
        else:
            parts[-1] += character
    return parts
