"""The two parts of a response: the chain of thought, and the summary after it."""

from __future__ import annotations

import re

from r1train.data.prompts import opens_think

OPEN, CLOSE = "<think>", "</think>"
_BRACE = re.compile(  # \{ and \\ are one thing each
    r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\.|(?P<opens>\{)|(?P<closes>\})", re.DOTALL
)


def thoughts(response: str) -> str:
    """What stands before the last `</think>`, without its tags, whether `<think>` opens it or the
    prompt does; all of a response that closes no thoughts. The last: what is closed early could go
    on behind."""
    before, closed, rest = response.rpartition(CLOSE)
    return (before if closed else rest).replace(OPEN, " ").replace(CLOSE, " ")


def summary(response: str, prompt: str = "") -> str:
    """What is said after the thoughts; "" where these do not end, whether the response opens them
    or the prompt does. R1's helpfulness is judged by it alone.

    Of R1-Zero's format, which is an <answer> block alone, it is the text of that block.
    """
    _, closed, after = response.rpartition(CLOSE)
    if not closed and (OPEN in response or opens_think(prompt)):
        return ""
    block = answer_block(after)
    return (after if block is None else block).strip()


def answer_block(text: str) -> str | None:
    """The text of the only <answer> block."""
    before, opened, rest = text.partition("<answer>")
    inside, closed, after = rest.partition("</answer>")
    several = "<answer>" in rest or "</answer>" in before + after
    return inside if opened and closed and not several else None


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{…} or \\fbox{…} that is in no other."""
    found = None
    opened: list[int | None] = []  # where the content of a box begins; None: of other braces
    for brace in _BRACE.finditer(text):
        if brace["box"] or brace["opens"]:
            opened.append(brace.end() if brace["box"] else None)
        elif brace["closes"] and opened and (start := opened.pop()) is not None:
            found = slice(start, brace.start())  # what is inside of it was closed before
    return None if found is None else text[found]
