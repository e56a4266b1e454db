"""The two parts of a response: the chain of thought, and the summary after it."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
ANSWER = ("<answer>", "</answer>")


def thoughts(response: str) -> str:
    """What is thought before `</think>`, whether `<think>` stands before it or in the prompt; all
    of a response that closes no thoughts."""
    before, _, _ = response.partition(CLOSE)
    _, opened, inside = before.partition(OPEN)
    return inside if opened else before


def summary(response: str) -> str:
    """What is said after the thoughts, without the tags of the answer; all of a response that
    closes no thoughts. R1's helpfulness is judged by it alone."""
    _, _, after = response.rpartition(CLOSE)
    for tag in ANSWER:
        after = after.replace(tag, "")
    return after.strip()
