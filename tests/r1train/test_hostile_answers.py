"""No verifier of reasoning-gym credits an answer that is wrong by the way it was made, nor takes
longer over it than it may."""

import pytest

from r1train.config.task import DatasetConfig
from r1train.data.problems import Problem
from r1train.rewards.gym import create
from r1train.rewards.pool.pool import VerifierPool
from r1train.rewards.verifiers import Verifier
from r1train.verify import equivalent
from tests.r1train.hostile_answers import NONSENSE, SPOILED, hostile_answers

NO_PARAMETERS_OF_ITS_OWN = {"composite"}
RIGHT_AFTER_ALL = {
    "sokoban": {"twice", "two words", "two lines", "many times"},  # the boxes stay where they are
    "power_function": {"last left out", "half", "another digit", "yet another digit"},  # 3 count
    "pool_matrix": {"last left out", "ten times"},  # "5.", "5.00"
    "shortest_path": {"words shuffled"},  # another path, as short
    "time_intervals": {"first left out"},  # "0:34" for "00:34"
}
"""Spoiled answers that mean the same, or that the question allows."""
TIMEOUT, MOST_TIMEOUTS = 5.0, 4


def datasets():
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - NO_PARAMETERS_OF_ITS_OWN)


def problem_and_other(name):
    """A problem, and an answer to another that is not its own."""
    items = create(name, {"size": 4, "seed": 1})
    first, *others = (items[number] for number in range(4))
    answers = [entry["answer"] for entry in others if entry["answer"] != first["answer"]]
    problem = Problem(name, 0, first["question"], first["answer"] or "", first["metadata"])
    return problem, next(iter(answers), None) or "17"


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets())
def test_no_verifier_credits_a_wrong_answer(name):
    problem, other = problem_and_other(name)
    right = problem.answer
    hostile = [
        (kind, text)
        for kind, text in hostile_answers(right, other, name)
        if kind not in RIGHT_AFTER_ALL.get(name, ()) and not (right and equivalent(text, right))
    ]
    assert len(hostile) >= (120 if right else 90)
    with VerifierPool(Verifier((DatasetConfig(name=name),)), 1, TIMEOUT) as pool:
        outcomes = pool.run([(text, problem) for _, text in hostile])
        if right:
            assert pool.run([(right, problem)])[0].score == 1
    credited = [
        (kind, text[:80])
        for (kind, text), outcome in zip(hostile, outcomes, strict=True)
        if outcome.score >= 1
    ]
    assert credited == []
    assert sum(outcome.failure == "timeout" for outcome in outcomes) <= MOST_TIMEOUTS


def test_there_are_ten_thousand_of_them():
    assert len(NONSENSE) >= 90
    assert len({*NONSENSE}) == len(NONSENSE)
    made = [text for _, text in hostile_answers("12 + x, 7\n5 a", "17", "seed")]
    assert len(made) > len(NONSENSE) + len(SPOILED) - 5
    assert made == [text for _, text in hostile_answers("12 + x, 7\n5 a", "17", "seed")]
    assert len(made) * (len(datasets()) - 6) > 10_000  # six datasets have no reference
