"""Weighted sums of rewards, what applies to nothing, and the figures that are logged."""

from __future__ import annotations

import math

import pytest

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.data.problems import ProblemSet
from r1train.rewards import manager, registry
from r1train.rewards.base import Reward, RewardBatch, Scores
from r1train.rewards.manager import RewardManager
from tests.r1train.samples import ONE, OTHER, sample

PROBLEMS = ProblemSet([ONE, OTHER], ())


def reward(value_of):
    """A reward that is a function of one completion."""

    class Made(Reward):
        closed = 0

        def __call__(self, samples):
            return Scores([value_of(s.completion) for s in samples], errors=2, timeouts=1)

        def close(self):
            type(self).closed += 1

    return Made


@pytest.fixture
def rewards(monkeypatch):
    """Rewards by name: accuracy and format without processes, and whatever else is put there."""
    found = {"accuracy": reward(lambda text: float(text == "2")), "format": reward(lambda _: 1.0)}
    for module in (registry, manager):
        monkeypatch.setattr(module, "BUILT_IN", found)
    return found


def score(config, problems, completions, **options):
    with RewardManager(config, PROBLEMS) as rewards:
        return rewards.score([*map(sample, problems, completions)], **options)


def test_the_total_is_the_weighted_sum_of_what_applies(rewards):
    rewards["length"] = reward(lambda text: None if text == "?" else len(text))
    config = RewardConfig(functions=("length", "accuracy"), weights=(0.5, 2))
    batch = score(config, [ONE, ONE, OTHER], ["2", "?", "four"])
    assert batch.by_name == {"length": [1, None, 4], "accuracy": [1, 0, 0]}
    assert batch.total == [2.5, 0, 2]
    assert score(RewardConfig(("length",)), [ONE], ["four"]).total == [4]  # each weighs 1


def test_what_is_only_evaluated_does_not_count(rewards):
    batch = score(RewardConfig(("format",)), [ONE], ["2"], also=("accuracy", "format"))
    assert batch.by_name == {"format": [1], "accuracy": [1]}
    assert batch.total == [1]
    assert score(RewardConfig(("format",)), [ONE], ["2"]).by_name == {"format": [1]}


def test_to_what_nothing_applies_has_the_mean_of_its_problem(rewards, caplog):
    rewards["value"] = reward(lambda text: float(text) if text else None)
    config = RewardConfig(("value",))
    batch = score(config, [ONE, ONE, ONE, OTHER], ["1", "", "4", ""])
    assert batch.total == [1, 2.5, 4, 0]
    assert len(caplog.records) == 1
    assert "no reward function applies to a completion of sums.jsonl, problem 1" in caplog.text
    tenths = score(config, [ONE] * 4, ["0.1", "0.1", "0.1", ""]).total
    assert len(set(tenths)) == 1  # a group of equal rewards stays one


def test_every_reward_is_ended_even_where_another_cannot_be_made(rewards):
    class Refuses(Reward):
        def __init__(self, config, problems):
            raise ConfigError("not for these problems")

        def __call__(self, samples):
            raise AssertionError

    rewards["refuses"] = Refuses
    with pytest.raises(ConfigError, match="not for these"):
        RewardManager(RewardConfig(("refuses",)), PROBLEMS)
    assert [rewards[name].closed for name in ("accuracy", "format")] == [1, 1]


def test_an_unknown_name_says_the_nearest():
    expected = "unknown reward 'acuracy': did you mean 'accuracy'.*file.py:name"
    with pytest.raises(ConfigError, match=expected):
        RewardManager(RewardConfig(("format", "acuracy")), PROBLEMS)


def test_a_function_may_not_have_the_name_of_another(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def format(completions): ...\n")
    with pytest.raises(ConfigError, match="another function has the name 'format'"):
        RewardManager(RewardConfig((f"{path}:format",)), PROBLEMS)
    files = [tmp_path / "first.py", tmp_path / "second.py"]
    for file in files:
        file.write_text("def mine(completions): ...\n")
    with pytest.raises(ConfigError, match=r"first\.py:mine': another function has the name 'mine'"):
        RewardManager(RewardConfig(tuple(f"{file}:mine" for file in files)), PROBLEMS)


def test_figures():
    batch = RewardBatch(
        total=[1.0, 2.0],
        by_name={"mine": [1.0, None], "format": [0.0, 1.0], "never": [None, None]},
        errors={"mine": 1, "format": 0, "never": 0},
        timeouts={"mine": 0, "format": 0, "never": 2},
    )
    figures = batch.metrics()
    assert figures["reward"] == 1.5
    assert (figures["rewards/mine"], figures["rewards/format"]) == (1, 0.5)
    assert math.isnan(figures["rewards/never"])
    spread = [figures[f"rewards/{name}/std"] for name in batch.by_name]
    assert spread == [0, pytest.approx(0.5**0.5), 0]
    assert [figures[f"rewards/{name}/none"] for name in batch.by_name] == [0.5, 0, 1]
    assert (figures["rewards/mine/errors"], figures["rewards/never/timeouts"]) == (1, 2)
