"""The two parts of a response: the chain of thought, and the summary after it."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
ANSWER = ("<answer>", "</answer>")


def thoughts(response: str) -> str:
    """What stands before the last `</think>`, without its tags, whether `<think>` opens it or the
    prompt does; all of a response that closes no thoughts. The last: what is closed early could go
    on behind."""
    before, closed, rest = response.rpartition(CLOSE)
    return (before if closed else rest).replace(OPEN, " ").replace(CLOSE, " ")


def summary(response: str) -> str:
    """What is said after the thoughts, without the tags of the answer; all of a response that
    closes no thoughts. R1's helpfulness is judged by it alone."""
    _, _, after = response.rpartition(CLOSE)
    for tag in ANSWER:
        after = after.replace(tag, "")
    return after.strip()
