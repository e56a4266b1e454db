from pathlib import Path

import pytest

from r1train.suite.results import Result, compare
from r1train.suite.tables import as_json, comparison, markdown, overview, paper_tables

ABOUT = {"Architecture": "dense", "# Activated Params": "1M", "# Total Params": "1M"}


def result(name="aime_2024", k=64, **others):
    """Half of two questions are right."""
    known = {
        "benchmark": name,
        "title": name,
        "k": k,
        "questions": 2,
        "mean": 0.5,
        "mean_ci": (0.25, 0.75),
        "cons": 0.5,
        "cons_ci": (0.1, 0.9),
        "pass_at": {},
        "truncated": 0.0,
        "unanswered": 0.0,
        "unjudged": 0,
        "mean_tokens": 5.0,
        "tokens": 10,
        "figures": {},
        "by_subject": {},
        "per_question": {"a": 1.0, "b": 0.0},
        "settings": {"confidence": 0.95},
    }
    return Result(**(known | others))


@pytest.mark.parametrize(("k", "cons"), [(64, 50.0), (2, None)])
def test_cons_at_64_is_of_64_completions(k, cons):
    one = result(k=k)
    _, *tables = paper_tables({one.benchmark: one}, "ours", ABOUT)
    for table in tables:
        first, *_ = as_json(table)["rows"]
        assert (first["AIME 2024 pass@1"], first["AIME 2024 cons@64"]) == (50, cons)
        assert f"| **ours** | 50.0 | {'–' if cons is None else '50.0'} | –" in markdown(table)
    assert as_json(overview({one.benchmark: one}, Path("model")))["rows"][0]["cons@k"] == 50


def test_differences_that_are_all_alike_have_no_interval():
    one, other = result(), result(per_question={"a": 0.0, "b": 0.0})
    for right, known in ((one, False), (other, True)):
        pair = compare(one, right, 0.95)
        table = comparison({"a": pair}, {"a": one}, {"a": right}, ("ours", "theirs"))
        (row,) = as_json(table)["rows"]
        assert (row["interval"] is not None) == known
        assert (row["n"], row["p"]) == (2, 1)
