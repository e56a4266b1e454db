"""Findings over seeds: intervals and verdicts."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from r1train.config.findings import FindingConfig
from r1train.report.findings import RULE, Measured, compare, markdown, t_interval, t_quantile

EXPECTED = FindingConfig("more", "a: x", "b: x", paper="72.6")


def found(*pairs, at_least=0.0):
    measured = [tuple(each if isinstance(each, Measured) else Measured(each) for each in pair)
                for pair in pairs]  # fmt: skip
    return compare(replace(EXPECTED, at_least=at_least), measured)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (1000, 1.96234)]
)
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-4)


def test_the_interval_is_students():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert t_interval([1.0]) == (-inf, inf)


def test_a_difference_that_all_seeds_share_is_reproduced():
    one = found((0.9, 0.5), (0.92, 0.5), (0.91, 0.52))
    assert one.verdict == "reproduced"
    assert one.difference == pytest.approx(0.4033, abs=1e-4)
    assert found((0.5, 0.9), (0.5, 0.92), (0.52, 0.91)).verdict == "not reproduced"
    assert found((0.9, 0.5), (0.92, 0.5), (0.91, 0.52), at_least=0.5).verdict == "not reproduced"


def test_one_seed_or_seeds_that_disagree_decide_nothing():
    assert found((0.9, 0.1)).verdict == "not decided"
    assert found((0.9, 0.1), (0.1, 0.9), (0.6, 0.5)).verdict == "not decided"
    assert found().verdict == "not decided"


def of(*values, name="p"):
    """Figures of problems, and their mean."""
    return Measured(sum(values) / len(values), {f"{name}{i}": v for i, v in enumerate(values)})


def test_seeds_that_each_show_it_over_their_problems_decide():
    better, worse, much = of(*[1, 1, 1, 0] * 25), of(*[0, 1, 0, 0] * 25), of(*[1, 1, 1, 1] * 25)
    assert found((better, worse), (much, worse)).interval[0] < 0  # not by two seeds alone
    assert found((better, worse), (much, worse)).verdict == "reproduced"
    assert found((worse, better), (worse, much)).verdict == "not reproduced"
    assert found((better, worse)).verdict == "not decided"  # one seed
    assert found((better, worse), (Measured(nan), worse), (Measured(nan), worse)).verdict == (
        "not decided"
    )
    for other in (of(*[0, 1, 0, 0] * 20), of(*[0, 1, 0, 0] * 25, name="q")):  # of other problems
        assert found((better, other), (much, other)).verdict == "not decided"


def test_seeds_that_agree_by_chance_are_no_surer_than_their_problems():
    left = [of(*[1, 0, 1, 0] * 8, 1, name=f"seed {seed}, ") for seed in range(3)]
    right = [of(*[0, 1, 0, 1] * 8, 0, name=f"seed {seed}, ") for seed in range(3)]
    agreeing = [Measured(one.value + 0.001 * n, one.per_problem) for n, one in enumerate(left)]
    assert t_interval([a.value - b.value for a, b in zip(agreeing, right, strict=True)])[0] > 0
    one = found(*zip(agreeing, right, strict=True))
    assert one.verdict == "not decided"
    # Of 99 problems, 51 solved on the left alone and 48 on the right alone.
    half = 1.96 * (99 / 98 * (1 - (3 / 99) ** 2)) ** 0.5 / 99**0.5
    assert one.interval[1] - one.interval[0] == pytest.approx(2 * half, abs=1e-4)
    # The same problems in every seed are not three times as many.
    shared = found(*[(of(*[1, 0, 1, 0] * 8, 1), of(*[0, 1, 0, 1] * 8, 0))] * 3)
    assert shared.interval[1] - shared.interval[0] == pytest.approx(2 * half * 3**0.5, rel=0.02)


def test_equal_differences_say_nothing_of_how_they_scatter():
    assert found(*[(0.5 + 1 / 128, 0.5)] * 3).verdict == "not decided"
    solved = of(1, 1, 1, 1)
    assert found(*[(solved, solved)] * 3).verdict == "not decided"
    assert found((0.5, 0.5), (0.5, 0.5)).difference == 0.0
    rounded = found((0.3, 0.1), (0.4, 0.2), (0.5, 0.3))
    assert len({left - right for left, right in rounded.values}) > 1  # by rounding alone
    assert rounded.verdict == "not decided"


def test_a_figure_that_a_seed_lacks_is_left_out():
    assert found((0.9, 0.5), (inf, 0.5), (0.91, 0.52)) == found(
        (0.9, 0.5), (nan, 0.5), (0.91, 0.52)
    )
    one = found((0.9, 0.5), (nan, 0.5), (0.91, 0.52))
    assert (len(one.values), one.seeds) == (2, 3)
    assert "2 of 3 seeds: +39.5 %" in markdown([one])
    assert one.as_dict()["values"] == [[0.9, 0.5], [0.91, 0.52]]


def test_the_table_says_what_was_found():
    text = markdown([found((0.9, 0.5), (0.92, 0.5), (0.91, 0.52)), found()])
    assert "| more | 72.6 | 90.0 % / 50.0 %, 92.0 % / 50.0 %, 91.0 % / 52.0 % | +40.3 % (" in text
    assert "**reproduced** |" in text
    assert "| – | – | **not decided** |" in text
    assert text.endswith(f"\n\n{RULE}\n")


def test_the_documents_say_the_rule():
    text = (Path(__file__).parents[2] / "docs" / "r1-mini.md").read_text(encoding="utf-8")
    assert RULE in " ".join(text.split())
