"""A run that cannot learn says so, with a reason, and not at every step."""

import re

import pytest

from r1train.run.stall import PATIENCE, Stall, constant_reason

ALL_ZERO = {"frac_reward_zero_std": 1.0, "reward": 0.0}


def steps(stall, metrics, start=1, count=1):
    for step in range(start, start + count):
        stall.observe(step, metrics)


def test_constant_groups_are_said_after_some_steps_and_then_less_often(caplog):
    stall = Stall()
    steps(stall, ALL_ZERO, count=PATIENCE - 1)
    assert not stall.said
    steps(stall, ALL_ZERO, PATIENCE, 40)
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    assert said == [f"step {n}" for n in (5, 10, 20, 40)]
    assert [text.split(":")[0] for text in stall.said.values()] == ["step 40"]
    assert "nothing was learned in the last 5 steps: every reward is 0" in caplog.text


def test_a_step_with_a_gradient_starts_the_count_anew():
    stall = Stall()
    for _ in range(4):
        steps(stall, ALL_ZERO, count=PATIENCE - 1)
        steps(stall, {"frac_reward_zero_std": 0.9, "grad_norm": 0.1})
    assert not stall.said


def test_an_empty_gradient(caplog):
    stall = Stall()
    steps(stall, {"grad_norm": 0.0, "frac_reward_zero_std": 0.5}, count=PATIENCE)
    steps(stall, {"loss": 1.0, "grad_norm": 0.0}, count=PATIENCE)  # a supervised stage
    assert len(caplog.records) == 2
    assert "the gradient is exactly 0" in caplog.text


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"reward": 0.0, "completions/clipped_ratio": 0.9}, "90% .*raise rollout.max_completion"),
        ({"reward": 0.0, "rewards/accuracy/timeouts": 3}, "3 verifications of a step fail"),
        ({"reward": 0.0}, "may not know the <think> and <answer> format"),
        ({"reward": 2.0}, "equal rewards .mean 2.: the problems are solved"),
    ],
)
def test_the_reason_is_what_the_figures_say(metrics, reason):
    assert re.search(reason, constant_reason(metrics))
