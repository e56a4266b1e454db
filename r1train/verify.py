"""Whether an answer is right: what the accuracy reward, evaluation and majority votes rest on.

A policy optimises this function, so that a wrong credit is worse than a missed one.
`docs/rewards.md` has the rules in one table.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, get_args

from r1train.answers.clean import clean, depths, split
from r1train.answers.compare import equal, has_letters, is_arithmetic, matched
from r1train.answers.nodes import Form, Infinity, Quantity
from r1train.answers.syntax import parse
from r1train.answers.tokens import Unreadable
from r1train.answers.values import variables

AnswerType = Literal["auto", "math", "set", "ordered", "choice", "text", "exact"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
LONGEST_COMPARED = 256
"""Characters of an answer that `equivalent` reads; longer ones are the same text or differ."""


def verify(answer: str, reference: str, *, answer_type: str = "auto") -> float:
    """1.0 if the answer is right, else 0.0. The reference decides how it is compared.

    Args:
        answer: What stands for the answer in a completion, such as the text of its <answer> block.
        reference: The right answer.
        answer_type: "math" (one value: exact, or to the digits of a decimal reference), "set" and
            "ordered" (lists), "choice" (a letter), "text" (Unicode-normalised; case and final
            punctuation ignored), "exact" (the same characters), or "auto": "choice" for a single
            capital letter, "math" for what parses as mathematics without letters read as products,
            else "text".

    Nothing of either text is evaluated as code, and the time is bounded.

    Raises:
        TypeError: if the answer or the reference is no string.
        ValueError: if `answer_type` is none of `ANSWER_TYPES`.
    """
    for name, value in (("answer", answer), ("reference", reference)):
        if not isinstance(value, str):
            raise TypeError(f"verify: {name} = {value!r}: expected a string")
    if answer_type not in ANSWER_TYPES:
        raise ValueError(
            f"verify: answer_type = {answer_type!r}: expected one of {', '.join(ANSWER_TYPES)}"
        )
    if answer_type == "exact":
        return float(answer.strip() == reference.strip() != "")
    found, wanted = clean(answer), clean(reference)
    if not found or not wanted:
        return 0.0
    try:
        return float(found == wanted or _agree(found, wanted, answer_type))
    except RecursionError:  # deeper than any answer is
        return 0.0


def check_reference(reference: str, answer_type: str = "auto") -> None:
    """Raise ValueError, which says why, where no answer but the same text could be right."""
    if answer_type == "exact" and reference.strip():
        return
    wanted = clean(reference)
    if not wanted:
        raise ValueError("the answer is empty, or has characters that cannot be printed")
    if answer_type == "math" and _math(wanted) is None:
        raise ValueError(f"the answer {wanted!r} cannot be read as mathematics")
    if answer_type == "choice" and choice(wanted) is None:
        raise ValueError(f"the answer {wanted!r} is no choice: expected a letter, such as A or (A)")


def equivalent(left: str, right: str, answer_type: str = "auto") -> bool:
    """Whether two answers say the same: one is right where the other is the reference.

    Long texts are compared as they stand: many are compared with each other.
    """
    if max(len(left), len(right)) > LONGEST_COMPARED:
        return left.split() == right.split()
    pairs = ((left, right), (right, left))
    return any(verify(*pair, answer_type=answer_type) == 1.0 for pair in pairs)


def is_hedge(answer: str, reference: str) -> bool:
    """Whether the answer offers alternatives ("4 or 5") that the reference does not have."""
    if _OR.search(answer) is None or _OR.search(reference) is not None:
        return False
    return _SEVERAL.search(reference) is None


_OR = re.compile(r"\b(or|either)\b", re.IGNORECASE)
_SEVERAL = re.compile(r"^\s*\$*\\?\{.*,.*\}\$*\s*$|±|\\pm\b", re.DOTALL)


def _agree(answer: str, reference: str, answer_type: str) -> bool:
    if answer_type == "auto":
        return _agree_auto(answer, reference)
    if answer_type == "math":
        wanted, found = _math(reference), _math(answer)
        return wanted is not None and found is not None and equal(found, wanted)
    if answer_type in ("set", "ordered"):
        return _agree_lists(answer, reference, answer_type)
    if answer_type == "choice":
        return choice(answer) is not None and choice(answer) == choice(reference)
    return text(answer) == text(reference)


def _agree_auto(answer: str, reference: str) -> bool:
    answer, reference = _clock(answer), _clock(reference)
    if _CAPITAL.fullmatch(reference):
        return choice(answer) == choice(reference)
    wanted = _reference(reference)
    if wanted is None:
        return text(answer) == text(reference)
    found = _auto_math(_SPACED_GROUPS.sub(_joined, answer))
    return found is not None and equal(found, wanted)


# Mathematics.

_ALGEBRA = re.compile(r"[\^=+*]|\\[dt]?frac|\\sqrt|\\cdot")


_SPACED_GROUPS = re.compile(r"(?<![\d.,])(?<!\d )\d{1,3}(?: \d{3})+(?![\d/]| [\d/])")


def _joined(digits: re.Match[str] | str) -> str:
    return (digits if isinstance(digits, str) else digits.group()).replace(" ", "")


@lru_cache(maxsize=1024)
def _reference(text: str) -> Form | None:
    """What "auto" reads as mathematics: no words, no dates, no codes; else None.

    Letters side by side are words or codes, but for small ones in what is algebra by its signs.
    """
    if text.casefold() == "n/a":
        return None
    if _SPACED_GROUPS.fullmatch(text) and " 0" in text:  # 1 000, but 100 200 may be two numbers
        text = _joined(text)
    form = _auto_math(text)
    if form is None or is_arithmetic(form):
        return None
    if has_letters(form) and not _ALGEBRA.search(text):
        return None
    return form


def _math(text: str, *, applied: bool = False) -> Form | None:
    try:
        return parse(text, applied=applied)
    except Unreadable:
        return None


@lru_cache(maxsize=1024)
def _auto_math(text: str) -> Form | None:
    return _math(text, applied=True)


# Lists.

_LIST_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_LIST_WORDS = re.compile(r"(?<!\s)\s+(?:and|or|&)\s+", re.IGNORECASE)  # a long gap is read once


def _agree_lists(answer: str, reference: str, answer_type: str) -> bool:
    if _offers(answer, answer_type) and not _OR.search(reference):
        return False
    found, wanted = items(answer), items(reference)
    if len(found) != len(wanted) or not wanted:
        return False
    if answer_type == "set":
        return matched(found, wanted, _agree_items)
    return all(map(_agree_items, found, wanted))


def _offers(answer: str, answer_type: str) -> bool:
    """Whether the items are alternatives, of which a list is none: "a or b".

    The solutions of an equation are joined by "or", too: x = 2 or x = 3 is a set of both.
    """
    if _OR.search(answer) is None:
        return False
    return answer_type == "ordered" or not all(map(_is_solution, items(answer)))


def _is_solution(item: str) -> bool:
    form = _auto_math(item)
    if not isinstance(form, Quantity) or isinstance(form.value, Infinity):
        return False
    return form.name is not None or not variables(form.value)


def _agree_items(answer: str, reference: str) -> bool:
    if answer == reference:
        return True
    if _items_are_lists(answer, reference):
        return _agree_lists(answer, reference, "ordered")
    return _agree_auto(answer, reference)


def _items_are_lists(*texts: str) -> bool:
    return all(text[0] in _LIST_BRACKETS and len(items(text)) > 1 for text in texts)


def items(text: str) -> list[str]:
    """The items of a list: in brackets or none, parted by commas, semicolons, lines or spaces."""
    text = _inside(text.replace(r"\{", "{").replace(r"\}", "}"))
    for separators in (",;\n", None):
        parts = split(text, separators) if separators else text.split()
        if separators and len(parts) == 1 and _LIST_WORDS.search(text):
            parts = _LIST_WORDS.split(text)
        if len(parts) > 1:
            break
    parts = [re.sub(r"^(?:and|or)\s+", "", part.strip()) for part in parts]
    cleaned = [clean(part) for part in parts if part.strip()]
    return cleaned if all(cleaned) else []


def _inside(text: str) -> str:
    closing = _LIST_BRACKETS.get(text[:1])
    if closing is None or not text.endswith(closing):
        return text
    brackets = "".join(_LIST_BRACKETS), "".join(_LIST_BRACKETS.values())
    closed = next((i for i, (_, open_) in enumerate(depths(text, brackets)) if open_ == 0), -1)
    return text[1:-1].strip() if closed == len(text) - 1 else text


# Words.

_CAPITAL = re.compile(r"[\(\[]?([A-Z])[\)\]]?")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+|(?:(?:所以|因此|故|答案|应),?)*选[项择]?\s*:?\s*)?"
    r"[\(\[]?\s*([A-Za-z])\s*(?:[\)\]\.:]+(?P<rest>\s.*)?)?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_CHOICE = re.compile(
    # A letter that is no word, nor a variable (n, t, x, y, z); those where it stands for a choice.
    r"(?<![\w'])[B-HJ-Zb-hj-mo-su-w](?![\w'])|(?<![\w'])[aAI](?!\w|'|\s+\w)"
    r"|(?<![\w'])[aA]\s+(?:is|was|and|or|not|seems|looks)\b"
    r"|(?i:\b(?:option|choice|answer|letter)\s+[a-z]\b)"
    r"|[\(\[][A-Za-z][\)\]]|(?<!\w)[A-Za-z][\)\]:]"
    r"|(?i:^\s*(?:and|is|are|but|no|false)\b)"
    r"|(?i:\b(?:or|nor|not|\w+n't|either|neither|both|wrong|incorrect|untrue|wait|hmm+|actually"
    r"|alternative(?:ly)?|maybe|perhaps|possibly|probably|likely|unlikely|instead|rather|otherwise"
    r"|unless|mean|meant|guess|unsure|uncertain|oops|sorry|nope|nah|mistake|correction|joking"
    r"|kidding|chang\w+\s+my\s+mind"
    r"|(?:strike|scratch|ignore|disregard|delete)\s+(?:that|this|it)(?=\s*(?:[^\w\s]|$))"
    r"|(?:this|that|it|which)\s+is\s+false"
    r"|(?:second|third|fourth|fifth|last|other)\s+(?:one|option|choice|answer)s?)\b)",
)
_SPACED = re.compile(r"\s*([:;,/\-])\s*")
_LATEX_SPACE = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b)")
_WORDS_IN_LATEX = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")
_CLOCK = re.compile(  # 3 p.m., but no petametres and picomolars
    r"(?<=\d)\s*([ap](?=m)|[AP](?=M)|[AaPp]\.\s?(?=[Mm]))[Mm]\b\.?"
)
_ONE_IN_BRACES = re.compile(r"([_^])\{(\w)\}")


def choice(text: str) -> str | None:
    """The letter of a choice, in capitals: `A`, `(A)`, `A.`, `A) Paris`; None for anything else."""
    match = _CHOICE.fullmatch(text.replace("**", ""))  # **A.** Paris
    if match is None or _OTHER_CHOICE.search(match["rest"] or ""):
        return None
    return match.group(1).upper()


def text(written: str) -> str:
    """A text without what does not count: case, spaces, and the punctuation around it."""
    written = _ONE_IN_BRACES.sub(
        r"\1\2", _WORDS_IN_LATEX.sub(r"\1", _LATEX_SPACE.sub(" ", written))
    )
    if "\\" in written:
        return "".join(written.split())  # LaTeX that is not read: spaces mean nothing, case does
    written = _clock(_SPACED.sub(r"\1", " ".join(written.split())).casefold())
    return written.rstrip("?")


def _clock(text: str) -> str:
    return _CLOCK.sub(lambda half: f" {half[1][0].lower()}m", text)
