"""Reference answers as data sets write them, reduced to what an answer can be compared with.

GSM8K ends a solution with "#### 72", MATH puts the answer into a box, others write 72. or **72**.
A model that answers 72 would never meet these, so what only marks the answer is taken away.
"""

from __future__ import annotations

import re
from typing import Any

from r1train.answers.clean import closing_brace, split, unpaired
from r1train.data.prompts import TAGS
from r1train.verify import check_reference

MAX_LENGTH = 1000  # characters of an answer that is not text: longer ones are solutions

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*\{")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


def final_answer(text: str, answer_type: str = "auto") -> str:
    """The final answer in `text`: what follows GSM8K's ####, or stands in <answer> or in a box,
    without the $, asterisks and full stop around it. An "exact" answer is only stripped.

    Raises ValueError saying why no answer could be equal to it.
    """
    text = text.strip()
    if answer_type != "exact":
        text = _undecorated(_unmarked(text))
    if not text:
        raise ValueError("the answer is empty")
    if any(tag in text for tag in TAGS):
        raise ValueError(
            "the answer contains a <think> or <answer> tag, so none can be equal to it"
        )
    if len(text) > MAX_LENGTH and answer_type not in ("text", "exact"):
        raise ValueError(
            f"the answer has {len(text)} characters, as a solution has: give the final answer "
            'alone, after "####" or in \\boxed{}'
        )
    check_reference(text, answer_type)
    return text


def listed_answer(values: list[Any], answer_type: str) -> str:
    """A list as one reference: {a, b} for a "set", (a, b) for an "ordered" one."""
    if not values:
        raise ValueError("the answer is an empty list")
    items = []
    for value in values:
        if isinstance(value, list):
            item = listed_answer(value, "ordered")
        elif isinstance(value, str):
            item = final_answer(value)
        elif isinstance(value, bool):
            item = str(value).lower()
        else:
            raise ValueError(f"the answer's list holds {value!r}: expected text or numbers")
        if len(split(item, ",")) > 1:
            raise ValueError(f"{item!r} in the answer's list has a comma: make it two of the list")
        items.append(item)
    opening, closing = "{}" if answer_type == "set" else "()"
    return opening + ", ".join(items) + closing


def _unmarked(text: str) -> str:
    """What the marks for a final answer point to; all of it where there is none."""
    blocks = _BLOCK.findall(text)
    if len(blocks) == 1:
        text = blocks[0].strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
        if not text:
            raise ValueError('nothing follows the answer\'s "####"')
        if _GROUPED.fullmatch(text):
            text = text.replace(",", "")  # there it separates thousands
    boxes = {box.strip() for box in _boxes(text)}
    if len(boxes) > 1:
        raise ValueError("the answer has several boxes that differ: give the final answer alone")
    return boxes.pop() if boxes else text


def _boxes(text: str) -> list[str]:
    found, start = [], 0
    while match := _BOX.search(text, start):
        end = closing_brace(text, match.end() - 1)
        if end < 0:
            raise ValueError("the answer has a \\boxed{ that is not closed")
        found.append(text[match.end() : end])
        start = end
    return found


def _undecorated(text: str) -> str:
    """`text` without a full stop behind it and without what is wrapped around all of it."""
    before = None
    while text != before:
        before = text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        text = unpaired(text)
    return text
