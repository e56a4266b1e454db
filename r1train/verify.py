"""Whether an answer is right."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

AnswerType = Literal["auto", "math", "set", "ordered", "choice", "text", "exact"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)


def is_hedge(answer: str, reference: str) -> bool:
    """Whether the answer offers alternatives ("4 or 5") that the reference does not have."""
    return _OR.search(answer) is not None and _OR.search(reference) is None


def math_equal(answer: str, reference: str) -> bool:
    """Whether math-verify finds the whole answer equal to the reference.

    Its own time-outs are off: they raise outside a main thread, and `RewardPool` has others.
    """
    if answer.strip() == reference.strip():
        return True
    if not (_balanced(answer) and _balanced(reference)):
        return False
    from math_verify import verify

    parsed = [_parse_math(text) for text in (reference, answer)]
    return all(parsed) and verify(*parsed, timeout_seconds=None)


_OR = re.compile(r"\b(or|either)\b|\\lor\b|\|\||\u2228", re.IGNORECASE)


def _parse_math(text: str) -> list[Any]:
    # The box makes math-verify read all of the text: bare, it takes "5 or 4" for 4.
    from math_verify import LatexExtractionConfig, parse

    values: list[Any] = parse(
        f"\\boxed{{{text}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return values


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
