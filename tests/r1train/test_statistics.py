from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from r1train.report.evaluation import interval
from r1train.report.statistics import bootstrap_interval, paired_test, pass_at_k, share_interval


def test_pass_at_k_is_what_counting_every_draw_gives():
    for n in range(1, 9):
        for correct in range(n + 1):
            right = [i < correct for i in range(n)]
            for k in range(1, n + 1):
                counted = fmean(any(drawn) for drawn in combinations(right, k))
                assert pass_at_k(n, correct, k) == pytest.approx(counted, abs=1e-12)


def test_pass_at_k_of_many_completions_stays_in_range():
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(10_000, 9_999, 2) == 1.0
    assert pass_at_k(64, 0, 64) == 0.0


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_cannot_be(n, correct, k):
    with pytest.raises(ValueError, match=rf"n = {n}, correct = {correct}, k = {k}"):
        pass_at_k(n, correct, k)


def test_a_bootstrap_holds_the_mean_as_often_as_it_says():
    rng, held, tries = np.random.default_rng(7), 0, 300
    for seed in range(tries):
        scores = rng.beta(2, 1, 60).tolist()
        low, high = bootstrap_interval(scores, 0.9, seed=seed, resamples=400)
        held += low <= 2 / 3 <= high
    assert 0.84 <= held / tries <= 0.95


def test_a_bootstrap_repeats_by_its_seed_and_narrows_with_questions():
    few = [0.0, 1.0, 0.31, 0.127, 0.9, 0.411, 0.77]
    many = few * 50
    assert bootstrap_interval(few, seed=3) == bootstrap_interval(few, seed=3)
    assert bootstrap_interval(few, seed=3) != bootstrap_interval(few, seed=4)
    (low, high), (lower, higher) = bootstrap_interval(many), bootstrap_interval(few)
    assert lower < low < fmean(few) < high < higher


def test_all_right_is_not_certain():
    assert share_interval([1.0] * 5) == interval([1.0] * 5, 0.95)
    assert share_interval([0.5], k=2) == interval([0.5], 0.95, 2)
    assert share_interval([0.5, 0.25, 1.0]) == bootstrap_interval([0.5, 0.25, 1.0])


def test_a_paired_test_of_few_questions_counts_every_exchange():
    # Of 2^5 signs of (1, 1, 1, 1, 1) two are as far from 0.
    found = paired_test([1.0] * 5, [0.0] * 5)
    assert (found.difference, found.p_value, found.questions) == (1.0, 2 / 32, 5)
    assert paired_test([0.2, 0.4], [0.4, 0.2]).p_value == 1.0
    assert paired_test([0.5] * 30, [0.5] * 30).p_value == 1.0


def test_a_paired_test_of_many_questions():
    rng = np.random.default_rng(0)
    easy = rng.uniform(0, 1, 200)
    better = paired_test((easy + rng.normal(0.05, 0.1, 200)).tolist(), easy.tolist())
    assert better.low < better.difference < better.high
    assert better.p_value < 0.01
    assert better.low > 0
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired_test([1, 2, 3], [1, 2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_figure_is_refused(value):
    """A p-value of NaN would be 0: no exchange is as large."""
    with pytest.raises(ValueError, match="NaN or infinite"):
        paired_test([value, 1.0, 1.0], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="expected a finite number"):
        bootstrap_interval([value, 1.0])


def test_where_nothing_differs_one_test_in_twenty_says_so():
    rng = np.random.default_rng(5)
    pairs = [(rng.uniform(0, 1, 20).tolist(), rng.uniform(0, 1, 20).tolist()) for _ in range(300)]
    found = [paired_test(*pair, seed=i, resamples=200).p_value for i, pair in enumerate(pairs)]
    assert 0.02 <= fmean(p <= 0.05 for p in found) <= 0.09
