"""Supervised training by epochs: every demonstration once in each."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.sft import DemonstrationsConfig, SFTConfig
from r1train.config.task import TaskConfig
from r1train.data.demonstrations import RecordedDemonstrations
from r1train.data.problems import ProblemSet
from r1train.model.presets import mini_tokenizer
from r1train.run.artifacts import plan
from r1train.run.runner import run
from tests.r1train.conftest import TEXTS


@pytest.fixture
def seven(tmp_path):
    """A file of seven demonstrations."""
    path = tmp_path / "seven.jsonl"
    rows = [{"prompt": f"What is 2 + {i}?", "completion": str(2 + i)} for i in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def batches(path, **options):
    config = SFTConfig(datasets=(DemonstrationsConfig(path=path),), **options)
    task, none = TaskConfig(prompt_template="plain"), ProblemSet([], ())
    found = RecordedDemonstrations(
        config, task, mini_tokenizer(TEXTS), heldout=none, positions=None, seed=0
    )
    return [[one.where for one in found.batch(step)] for step in range(found.steps)]


def test_every_epoch_has_each_demonstration_once_in_an_order_of_its_own(seven):
    found = batches(seven, num_train_epochs=2, batch_size=4)
    assert [len(batch) for batch in found] == [4, 4, 4, 2]
    drawn = [where for batch in found for where in batch]
    assert set(Counter(drawn[:7]).values()) == set(Counter(drawn[7:]).values()) == {1}
    assert len(set(drawn[:7])) == 7
    assert drawn[:7] != drawn[7:]


@pytest.mark.parametrize(("epochs", "sizes"), [(0.5, [4]), (0.01, [1]), (1.5, [4, 4, 2])])
def test_a_part_of_an_epoch_is_a_part_of_the_demonstrations(seven, epochs, sizes):
    assert [len(batch) for batch in batches(seven, num_train_epochs=epochs, batch_size=4)] == sizes


def test_steps_are_epochs_or_their_number():
    assert SFTConfig().steps() == 200
    with pytest.raises(ConfigError, match=r"num_train_epochs = 1\.0: sft\.max_steps is given too"):
        SFTConfig(max_steps=3, num_train_epochs=1)


def test_a_stage_that_counts_epochs_takes_back_the_steps_of_the_recipe():
    stages = (
        {"kind": "sft", "name": "a", "sft": {"num_train_epochs": 2}},
        {"kind": "sft", "name": "b", "sft": {"batch_size": 2}},
    )
    first, second = plan(Config(sft=SFTConfig(max_steps=3), stages=stages))
    assert (first.config.sft.max_steps, first.config.sft.num_train_epochs) == (None, 2.0)
    assert (second.config.sft.max_steps, second.config.sft.num_train_epochs) == (3, None)


def test_a_run_of_one_epoch_decays_its_rate_over_its_own_steps(config, seven, tmp_path):
    options = (f'sft.datasets=[{{path="{seven}"}}]', "sft.num_train_epochs=1", "sft.batch_size=2")
    run(
        config(
            *options, "sft.max_steps=none", 'stages=["sft"]', "sft.warmup_ratio=0", "eval.limit=1"
        )
    )
    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    rates = [r["learning_rate"] for line in lines if "learning_rate" in (r := json.loads(line))]
    assert len(rates) == 4
    cosine = (1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2)
    assert rates == pytest.approx([3e-3 * (0.1 + 0.9 * share) for share in cosine])


def test_worked_solutions_have_no_epochs(config):
    options = ("sft.max_steps=none", "sft.num_train_epochs=1", 'stages=["sft"]')
    with pytest.raises(ConfigError, match="worked solutions are new ones at every step"):
        run(config(*options))
