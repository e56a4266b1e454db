"""How an answer is found in what a model writes: its last word, or none.

Chains of thought try many answers, so of several that are marked in the same way the last one
counts, and nothing that stands in the chain of thought does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from r1train.answers.clean import clean
from r1train.data.response import answer_block, boxed, summary
from r1train.sandbox.extract import extract_program
from r1train.verify import choice

_ANSWER = re.compile(r"(?:answer|答案)[\s*]*(?:[:：]|是|为|选(?!项)择?)\s*(.+)", re.IGNORECASE)
_ANSWER_IS = re.compile(r"answer\s+is:?\s+(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_IN_BRACKETS = re.compile(r"([A-Z])\s*\((.*)\)", re.DOTALL)
_LONGEST = 10_000
"""Characters of an answer that is read; what is marked and longer is a chain of thought."""
_MOST_OBJECTS = 64
"""That are looked at, from the last one: a text may open thousands and close none."""
_LETTER_FIRST = re.compile(r"\(?([A-Z])\)?[.。]?")


def in_block(completion: str) -> bool:
    """Whether it has R1-Zero's format: the block is the answer, and needs no other mark."""
    return answer_block(completion.rpartition("</think>")[2]) is not None


def extract(rules: Sequence[str], completion: str, prompt: str = "") -> str | None:
    """What the first rule finds that finds something, in the summary; None where none does."""
    text = summary(completion, prompt)
    for rule in rules:
        if (found := RULES[rule](text)) is not None and found.strip():
            return found.strip()
    if text and in_block(completion) and "\n" not in text:
        return text
    return None


def _cleaned(found: str) -> str:
    return clean(found) if len(found) <= _LONGEST else ""


def hashes(text: str) -> str | None:
    """GSM8K's: what follows the last ####, on its line."""
    _, marked, after = text.rpartition("####")
    return after.strip().partition("\n")[0] if marked else None


def answer(text: str) -> str | None:
    """What follows the last "Answer:" or "答案：" on its line."""
    found = _ANSWER.findall(text)
    return _cleaned(found[-1].replace("**", "")) if found else None


def answer_is(text: str) -> str | None:
    """What follows the last "the answer is", to the end of the sentence."""
    found = _ANSWER_IS.findall(text)
    return _cleaned(re.split(r"\.(?:\s|$)|\n", found[-1])[0]) if found else None


def letter(text: str) -> str | None:
    """The letter of a choice, after the last "Answer:" or "the answer is"; one that is hedged, as
    "A or B", is none. Where nothing is marked, a text that is a letter alone."""
    places = [*_ANSWER.finditer(text), *_ANSWER_IS.finditer(text)]
    marked = max(places, key=lambda match: match.start())[1] if places else text
    found = _cleaned(marked.replace("**", ""))
    if alone := _LETTER_FIRST.fullmatch(found):
        return alone[1]
    return choice(_IN_BRACKETS.sub(r"\1) \2", found)) if places else None


def boxed_letter(text: str) -> str | None:
    """The letter of a choice in the last box."""
    return None if (found := boxed(text)) is None else choice(_cleaned(found))


def number(text: str) -> str | None:
    """The last number: what is left where no answer is marked."""
    found = _NUMBER.findall(text)
    return found[-1].replace("$", "").rstrip(",") if found else None


def json_answer(text: str) -> str | None:
    """The field "answer" of the last JSON object that has one."""
    decoder, start = json.JSONDecoder(), len(text)
    for _ in range(_MOST_OBJECTS):
        if (start := text.rfind("{", 0, start)) < 0:
            break
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("answer"), str | int | float):
            return str(found["answer"])
    # Models put line breaks into strings, which JSON does not allow.
    loose = re.findall(r'"answer"\s*:\s*"([^"\n]*)"', text)
    return loose[-1] if loose else None


def json_letter(text: str) -> str | None:
    """The letter of a choice in the last JSON object that has an "answer"."""
    return None if (found := json_answer(text)) is None else choice(_cleaned(found))


def code(text: str) -> str | None:
    """The last fenced block of Python; where there is none, of no language."""
    return extract_program(text, "python")


def everything(text: str) -> str | None:
    """All that follows the chain of thought."""
    return text


RULES: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "hashes": hashes,
    "answer": answer,
    "answer_is": answer_is,
    "letter": letter,
    "boxed_letter": boxed_letter,
    "number": number,
    "json": json_answer,
    "json_letter": json_letter,
    "code": code,
    "all": everything,
}
