"""Whole steps of GRPO: trainers take turns from one start, and who earns less does not win."""

from __future__ import annotations

from importlib.util import find_spec
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import race, race_ours, race_tasks
from benchmarks.race import Step
from benchmarks.whole import WE

SMALL = race_tasks.Race("small", "qwen2-3m", 2, 4, 8, 4, steps=2, learning_rate=1e-3)


class Witness:
    """Turns that are had at once, and what was done in them."""

    def __init__(self) -> None:
        self.began, self.steps = 0, list[tuple[int, float]]()

    def begin(self) -> None:
        self.began += 1

    def end(self, tokens: int, reward: float) -> None:
        self.steps.append((tokens, reward))


@pytest.mark.parametrize("name", ["ours", "trl"])
def test_a_trainer_makes_the_steps_that_were_asked_for(name: str, tmp_path: Path) -> None:
    run = race_ours.run
    if name == "trl":
        pytest.importorskip("trl")
        from benchmarks.peers.trl_race import run
    race_tasks.save_start(SMALL, 0, tmp_path)
    turns = Witness()
    run(SMALL, tmp_path, 0, "cpu", turns)
    assert turns.began == len(turns.steps) == SMALL.steps
    for tokens, reward in turns.steps:
        assert 2 * 4 <= tokens <= SMALL.shape[0] == 2 * 4 * 4
        assert 0.0 <= reward <= 1.0


def test_the_reward_is_the_share_of_the_digits_that_occur() -> None:
    assert race_tasks.digits(["0123456789", "55 5five", ""]) == [1.0, 0.1, 0.0]


def seeds(*rewards: float, seconds: float = 1.0) -> list[list[Step]]:
    """Ten steps a seed; the last two have the reward."""
    return [[Step(seconds, 10, 0.0)] * 8 + [Step(seconds, 10, reward)] * 2 for reward in rewards]


def test_the_figures_are_medians_of_the_timed_steps_and_the_last_rewards() -> None:
    steps = {WE: seeds(0.8, 0.6, seconds=2.0), "trl": seeds(0.9, 0.9, seconds=8.0)}
    steps[WE][0][0] = Step(99.0, 10, 0.0)  # the first ones are not timed
    row = race.summary(SMALL, WE, steps)
    assert row.seconds == pytest.approx(0.2 * SMALL.shape[0])
    assert row.ratio == pytest.approx(0.25)
    assert row.reward == pytest.approx(0.7)
    assert row.error == pytest.approx(0.2)
    assert race.spread(steps[WE]) == pytest.approx(0.1)


@pytest.mark.parametrize(("reward", "said"), [(0.78, "as good."), (0.4, "50% LESS of the rise.")])
def test_speed_at_a_lower_reward_is_said_to_be_that(reward: float, said: str) -> None:
    lines = list(race.verdicts({WE: seeds(reward), "trl": seeds(0.8, seconds=4.0)}))
    assert lines[0].startswith("r1kernels wins against trl: 0.25 of its time")
    assert lines[1].endswith(said)


def failing(*_: Any) -> None:
    raise RuntimeError("out of ideas")


run = failing


def test_a_trainer_that_fails_says_so_in_its_turn(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    ours.send(None)
    race._train(__name__, SMALL, tmp_path, 0, "cpu", torch.get_num_threads(), theirs)
    assert ours.recv() == "RuntimeError: out of ideas"


@pytest.mark.slow
def test_trainers_run_side_by_side() -> None:
    pytest.importorskip("trl")
    result = race.run(SMALL, "cpu", seeds=1)
    assert result.problems == []
    assert {name: [len(seed) for seed in seeds] for name, seeds in result.steps.items()} == {
        WE: [SMALL.steps],
        "trl": [SMALL.steps],
    }


def test_who_takes_part_is_installed() -> None:
    assert all(find_spec(module) for module in race.TRAINERS.values())
