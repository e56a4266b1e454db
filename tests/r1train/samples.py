"""Samples for tests of rewards."""

from __future__ import annotations

from r1train.data.problems import Problem
from r1train.data.samples import Sample

ONE = Problem("sums.jsonl", 0, "What is 1 + 1?", "2", {"difficulty": 1})
OTHER = Problem("sums.jsonl", 1, "What is 2 + 3?", "5", {"difficulty": 2, "hint": "odd"})


def sample(problem, completion, prompt="User: a Assistant:"):
    return Sample(problem, prompt, completion, [len(completion)], True)


def wrap(answer, thought="a"):
    return f"<think>{thought}</think><answer>{answer}</answer>"
