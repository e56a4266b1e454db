"""On the same outputs our scores are those of math-verify and of lm-eval's tasks, where these are
right. `agreement.jsonl` has a row for each output: whether it is right, and what each of them says.
"""

import json
import re
from pathlib import Path

import pytest

from r1train.suite.extraction import extract
from r1train.suite.metrics.exact import is_right
from r1train.suite.specs import benchmarks

FILE = Path(__file__).parent / "agreement.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
IDS = [f"{row['reference']} | {row['said']}" for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_ours_is_right(row):
    answer = extract(benchmarks()[row["benchmark"]].extraction, row["said"])
    found = 0.0 if answer is None else is_right(answer, row["reference"])
    assert found == row["right"]


def test_math_verify_says_what_the_table_has():
    """Told to take its time: its limits are signals."""
    math_verify = pytest.importorskip("math_verify")

    def judged(row):
        gold = math_verify.parse(f"${row['reference']}$", parsing_timeout=None)
        found = math_verify.parse(row["said"], parsing_timeout=None)
        return int(math_verify.verify(gold, found, timeout_seconds=None))

    assert [judged(row) for row in ROWS] == [row["math_verify"] for row in ROWS]


def test_lm_eval_says_what_the_table_has():
    """GSM8K by the "flexible-extract" of its task, MATH by hendrycks_math."""
    pytest.importorskip("lm_eval")
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks.hendrycks_math import utils

    last = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)

    def judged(row):
        if row["benchmark"] == "math_500":
            box = utils.last_boxed_only_string(row["said"])
            return int(
                box is not None and utils.is_equiv(utils.remove_boxed(box), row["reference"])
            )
        ((found,),) = last.apply([[row["said"]]], [{}])
        for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
            found = re.sub(ignored, "", found)
        return int(found == row["reference"])

    assert [judged(row) for row in ROWS] == [row["lm_eval"] for row in ROWS]


def test_the_table_has_outputs_of_every_kind():
    for benchmark in ("math_500", "gsm8k"):
        verdicts = [row["right"] for row in ROWS if row["benchmark"] == benchmark]
        assert min(verdicts.count(0), verdicts.count(1)) >= 9
