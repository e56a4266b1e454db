"""Stages that hand each other what they leave: a reward model of a policy's own samples."""

from __future__ import annotations

import json

import pytest

from r1train.config.judgements import PreferenceRewardConfig
from r1train.config.recipe import load_config
from r1train.config.rewards import RewardConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.data.samples import Sample
from r1train.rewards.preference import PreferenceReward
from r1train.run.folder import RunFolder
from r1train.run.runner import run
from tests.r1train.conftest import RECIPE

ANNOTATOR = '''
def opinion(completions, **columns):
    """Prefers what is long."""
    return [float(len(text)) for text in completions]
'''

STAGES = """
[[stages]]
kind = "sample"
name = "annotated"
[stages.sample]
num_generations = 4
[stages.rewards]
functions = ["FOLDER/annotator.py:opinion"]

[[stages]]
kind = "reward_model"
name = "helpful"
[stages.reward_model]
datasets = [{ path = "stage:annotated", score_field = "reward" }]
batch_size = 16
heldout_size = 4
learning_rate = 3e-3
num_train_epochs = 6

[[stages]]
kind = "rl"
name = "aligned"
[stages.grpo]
max_steps = 1
eval_steps = 0
[stages.rewards]
functions = ["format", "preference"]
preference = { path = "stage:helpful", applies = "all" }
"""


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a run of these stages."""
    monkeypatch.setattr(RunFolder, "plot", lambda self: [])
    (tmp_path / "annotator.py").write_text(ANNOTATOR)
    path = tmp_path / "pipeline.toml"
    path.write_text(RECIPE + STAGES.replace("FOLDER", str(tmp_path)))
    run(load_config(path, [f"output_dir={tmp_path}/runs", "eval.limit=2", "name=pipeline"]))
    return tmp_path / "runs" / "pipeline"


def test_a_policy_is_rewarded_by_a_model_of_its_own_samples(finished):
    table = json.loads((finished / "helpful" / "table.json").read_text())
    dropped = sum(count for name, count in table.items() if name.startswith("dropped/"))
    assert table["judgements"] + table["heldout"] + dropped == 32  # one of each problem
    (step, *_) = [
        record
        for line in (finished / "aligned" / "metrics.jsonl").read_text().splitlines()
        if "rewards/preference" in (record := json.loads(line))
    ]
    assert step["rewards/preference/none"] == 0
    assert step["rewards/preference/std"] > 0
    # The reward reads what the model was trained on: it prefers what the annotator does.
    left = (finished / "annotated" / "completions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in left]
    config = PreferenceRewardConfig(path=str(finished / "helpful" / "checkpoint"), device="cpu")
    open_question = Problem("a", 0, "", "", verifiable=False)
    reward = PreferenceReward(RewardConfig(preference=config), ProblemSet([open_question], ()))
    samples = [
        Sample(open_question, f"User: {row['prompt']} Assistant:", row["completion"], [1], True)
        for row in rows
    ]
    scores = reward(samples).values
    agreed = []
    for group in (range(first, first + 4) for first in range(0, len(rows), 4)):
        best, worst = (pick(group, key=lambda i: rows[i]["reward"]) for pick in (max, min))
        if rows[best]["reward"] > rows[worst]["reward"]:
            agreed.append(scores[best] > scores[worst])
    assert sum(agreed) > 0.8 * len(agreed)
