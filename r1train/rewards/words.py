"""The words of a text by script, without what is written alike in all languages.

Code, formulas, URLs, tags, digits, identifiers and single letters (variables) are no words. Inside
of code and formulas only Latin and Greek letters are passed over, since those are what code and
formulas are written in: Chinese in them is Chinese. English in them is not seen to be English.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import regex

from r1train.rewards.notation import Notation, is_code, notation

LONGEST = {"Han": 2, "Hiragana": 3, "Katakana": 3, "Hangul": 4, "Thai": 4, "Lao": 4, "Khmer": 4}
LONGEST |= {"Myanmar": 4, "Tibetan": 4}
"""Letters of a script that count as one word where no space parts them. Chinese words have two
characters as a rule; a segmenter's dictionary would be 19 MB for the same share."""
LONGEST_OF_ALPHABETS = 12
"""Thisisasentence is not one word; few words of any alphabet have twice as many letters."""

_ALPHABETS = [
    *("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Bengali", "Armenian"),
    *("Georgian", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam"),
    *("Sinhala", "Ethiopic"),
]
OTHER = "Other"
"""The script of letters that have none of those above."""

_NEUTRAL = regex.compile(
    r"""
    ```(?:(?!```).)*+```                                      # code
    | `[^`\n]+`
    | \$\$[^$]+\$\$                                           # formulas
    | \$(?!\s)[^$\n]+(?<!\s)\$(?!\d)
    | \\\[(?:[^\\]|\\(?![\[\]]))*+\\\]
    | \\\((?:[^\\]|\\(?![()]))*+\\\)
    | \\(?:begin|end)\{[a-z]+\*?\}
    | \\[A-Za-z]+
    | (?:https?://|www\.)\S+
    | </?[A-Za-z][\w-]*\s?/?>                                 # tags
    """,
    regex.VERBOSE | regex.DOTALL,
)
_NEUTRAL_LETTERS = regex.compile(r"[\p{Latin}\p{Greek}\p{M}]+")
_NEAR = 3
"""Characters around a word that tell whether it stands in a formula."""
_UNSEEN = regex.compile(r"\p{Cf}+")
_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")  # sorting longer runs takes quadratic time


def _words_of_script(script: str) -> str:
    if script in LONGEST:
        return rf"(?P<{script}>\p{{{script}}}[\p{{{script}}}\p{{M}}ー]*)"
    letters = rf"\p{{{script}}}[\p{{{script}}}\p{{M}}]*"
    return rf"(?P<{script}>{letters}(?:['’‐-]{letters})*)"


_TOKENS = regex.compile(
    "|".join(
        [
            r"(?P<identifier>(?=[\p{Latin}\p{Greek}]*[\p{Nd}_])[\p{Latin}\p{Greek}\p{Nd}_]+)",
            *map(_words_of_script, (*_ALPHABETS, *LONGEST)),
            rf"(?P<{OTHER}>\p{{L}}\p{{M}}*)",
            r"(?P<stop>[.!?;:\n。！？；：।])",
        ]
    )
)


@dataclass(frozen=True, slots=True)
class Word:
    """What stands between spaces or letters of another script."""

    text: str
    script: str
    weight: int
    """How many words it is counted as: one, or more where it goes on without a space."""
    starts_sentence: bool
    notation: Notation = "no"
    """Whether it says the same in languages of other scripts."""


def seen(text: str) -> str:
    """One spelling of what looks alike: NFKC, without characters that cannot be seen."""
    return unicodedata.normalize("NFKC", _MARKS.sub(r"\1", _UNSEEN.sub("", text)))


def words_of(text: str) -> Iterator[Word]:
    """The words of `text`, in order. The time is linear in its length."""
    text = _NEUTRAL.sub(lambda match: f" {_NEUTRAL_LETTERS.sub(' ', match.group())} ", seen(text))
    starts_sentence, code = True, _is_code(text, 0)
    for match in _TOKENS.finditer(text):
        script = match.lastgroup
        if script == "stop":
            starts_sentence = True
            if match.group() == "\n":
                code = _is_code(text, match.end())
        elif script != "identifier":
            word = match.group()
            if len(word) == 1 and script in _ALPHABETS:
                continue  # x, or an α
            weight = max(1, len(word) // LONGEST.get(script, LONGEST_OF_ALPHABETS))
            kind: Notation = "no"
            if script == "Latin":
                start, end = match.span()
                before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
                kind = notation(word, before, after, code=code)
            yield Word(word, script, weight, starts_sentence, kind)
            starts_sentence = False


def _is_code(text: str, start: int) -> bool:
    end = text.find("\n", start)
    return is_code(text[start : end if end >= 0 else None])
