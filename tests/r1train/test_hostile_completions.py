"""Completions that would like more than they deserve get what hostile_completions.jsonl says.

A completion there is a text, or a list of texts and of [text, times].
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from r1train.config.rewards import RewardConfig
from r1train.config.task import DatasetConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.rewards.registry import BUILT_IN
from tests.r1train.samples import sample

SUM = Problem("sums.jsonl", 0, "What is 40 + 2?", "42")
PROBLEMS = {
    "sum": SUM,
    "opened": SUM,  # by a prompt that ends in <think>
    "zh": replace(SUM, question="四十加二等于几？"),
    "de": replace(SUM, question="Was ist die Summe von 40 und 2?"),
    "formula": replace(SUM, question="40 + 2 = ?"),
    "choice": replace(
        SUM,
        question="What is the capital of France? A) Paris B) Rome C) Oslo D) Bern",
        answer="A",
        answer_type="choice",
    ),
    "roots": replace(SUM, question="What solves x^2 = 4?", answer="-2, 2", answer_type="set"),
    "word": replace(SUM, question="Which word is an anagram of listen?", answer="silent"),
    "factors": replace(SUM, question="Factor x^2 - 1.", answer="(x-1)(x+1)"),
    "poem": replace(SUM, question="Write a poem.", answer="", verifiable=False),
}
TABLE = Path(__file__).with_name("hostile_completions.jsonl").read_text(encoding="utf-8")
ROWS = [json.loads(line) for line in TABLE.splitlines()]


def written(completion):
    parts = [completion] if isinstance(completion, str) else completion
    return "".join(part if isinstance(part, str) else part[0] * part[1] for part in parts)


@pytest.mark.parametrize("name", ["accuracy", "format", "language", "repetition"])
def test_each_gets_what_the_table_says(name):
    rows = [row for row in ROWS if name in row]
    prompts = {"opened": "Q <think>\n"}
    samples = [
        sample(PROBLEMS[p], written(row["completion"]), prompts.get(p, "Q"))
        for row in rows
        for p in [row["problem"]]
    ]
    problems = ProblemSet(list(PROBLEMS.values()), (DatasetConfig(path="sums.jsonl"),))
    reward = BUILT_IN[name](RewardConfig(timeout=30), problems)
    try:
        scores = reward(samples)
    finally:
        reward.close()
    wrong = [
        f"{row['completion']!r:.80} of {row['problem']} has {value}: {row['why']}"
        for row, value in zip(rows, scores.values, strict=True)
        if value != pytest.approx(row[name], abs=1e-12)
    ]
    assert wrong == []
    assert (scores.errors, scores.timeouts) == (0, 0)


def test_the_table_has_many_kinds_and_each_row_once():
    assert len({(row["problem"], json.dumps(row["completion"])) for row in ROWS}) == len(ROWS)
    assert len(ROWS) >= 350
    assert {row["problem"] for row in ROWS} == PROBLEMS.keys()
    credits = Counter(row["accuracy"] for row in ROWS)
    assert min(credits[0], credits[1]) > 80  # no verifier that always says the same passes
