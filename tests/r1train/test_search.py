"""The stages process_reward and search: what they leave, resume, and what they refuse."""

from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError
from r1train.config.task import DatasetConfig
from r1train.data.problems import ProblemSet
from r1train.report.search import show_search
from r1train.run import runner
from r1train.run.artifacts import plan
from r1train.run.runner import resume, run
from r1train.run.supplies import Supplies
from r1train.stages.evaluate import vote
from r1train.stages.process_reward import ProcessReward
from r1train.stages.search import METHODS, Candidates, Search, best_of, voted, weighted
from tests.r1train.conftest import RECIPE
from tests.r1train.samples import ONE, sample, wrap

STAGES = """
[[stages]]
kind = "sft"
name = "base"
[[stages]]
kind = "process_reward"
name = "prm"
[[stages]]
kind = "search"
name = "search"
[steps]
separators = ["1", "\\n"]
max_tokens = 6
[process_reward]
num_prompts = 5
num_generations = 3
num_rollouts = 2
batch_size = 4
learning_rate = 1e-3
[search]
value_model = "stage:prm"
num_generations = 4
width = 2
"""


NO_VALUE = "search.value_model=none"
TESTED = replace(ONE, columns={"inputs": ["1"], "outputs": ["2"]})


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The tiny recipe with a base, a process reward model and a search; no plots."""
    monkeypatch.setattr(runner.RunFolder, "plot", lambda self: [])
    path = tmp_path / "tiny.toml"
    head, stages = RECIPE.split("[model]", 1), STAGES.split("[steps]")
    path.write_text(f"{head[0]}{stages[0]}[model]{head[1]}[steps]{stages[1]}")
    options = ("sft.max_steps=2", "eval.temperature=1.0", "eval.top_p=1.0")
    return lambda *more: load_config(path, [f"output_dir={tmp_path}/runs", *options, *more])


def weights(folder):
    return (folder / "prm" / "checkpoint" / "model.safetensors").read_bytes()


def test_a_recipe_trains_a_value_and_searches_with_it(recipe, tmp_path, monkeypatch):
    run(recipe())
    folder = tmp_path / "runs" / "tiny"
    text = (folder / "search" / "table.json").read_text()
    table = json.loads(text)
    assert table["per_problem"].keys() == METHODS.keys()
    for name in METHODS:
        assert len(table["per_problem"][name]) == table["problems"] == 8
        assert table[name] == pytest.approx(fmean(table["per_problem"][name]))
        assert table[f"{name}_ci"][0] <= table[name] <= table[f"{name}_ci"][1]
    assert 0 < table["mcts/tokens"] <= table["majority/tokens"]
    assert table["majority/tokens"] == pytest.approx(4 * table["pass@1/tokens"])
    assert table["best_of_n/judged_tokens"] == table["best_of_n/tokens"]
    assert table["mcts/judged_tokens"] > 0 == table["majority/judged_tokens"]
    assert table["majority/n=1"] == table["best_of_n/n=1"]
    assert {"pass@4", "mcts/found", "value/pair_accuracy", "majority/n=2"} < table.keys()
    log = (folder / "prm" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in log]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]  # 15 solutions, 4 at a time
    assert steps[-1]["brier"] < steps[0]["brier"]
    learnt = json.loads((folder / "prm" / "table.json").read_text())
    assert (learnt["problems"], learnt["solutions"]) == (5, 15)
    assert learnt["steps"] > 15
    config = json.loads((folder / "prm" / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForTokenClassification"]

    # Again, broken off after two updates; what was sampled is not sampled again.
    update = ProcessReward.update

    def broken_off(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessReward, "update", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run(recipe("name=again", "process_reward.save_steps=1", "seed=0"))
    again = folder.with_name("again")
    assert (again / "prm" / "checkpoint-2").is_dir()
    monkeypatch.setattr(ProcessReward, "_sample", None)
    resume(again)
    assert weights(again) == weights(folder)
    assert (again / "search" / "table.json").read_text() == text


def test_what_cannot_be_searched_is_said_before_anything_is_trained(recipe):
    with pytest.raises(ConfigError, match=r"search.value_model = None: expected a process reward"):
        Search.check(recipe("search.value_model=none"), ProblemSet([], ()))
    with pytest.raises(ConfigError, match=r"eval.temperature = 0.0: expected > 0"):
        Search.check(recipe("eval.temperature=0"), ProblemSet([], ()))
    with pytest.raises(ConfigError, match=r"value_model = 'stage:prn': expected a stage before"):
        plan(recipe("search.value_model=stage:prn"))


def test_a_value_model_is_what_a_search_is_made_from(recipe, tmp_path):
    """By the contents of its folder, or the stage that leaves it."""
    folder = tmp_path / "value"
    folder.mkdir()
    hashes = set()
    for text in ("a", "b"):
        (folder / "model.safetensors").write_text(text)
        hashes.add(plan(recipe(f"search.value_model={folder}"))[-1].inputs_hash)
    hashes |= {plan(recipe(option))[-1].inputs_hash for option in ("name=x", "steps.max_tokens=7")}
    assert len(hashes) == 4


def test_problems_without_answers_have_no_steps_of_worth(recipe):
    problems = ProblemSet([], (DatasetConfig(path="open.jsonl", answer_field=""),))
    with pytest.raises(ConfigError, match="process_reward: no dataset has answers"):
        ProcessReward.check(recipe(), problems)
    with pytest.raises(ConfigError, match=r"model.lora_rank = 4: a process reward model has no ad"):
        ProcessReward.check(recipe("model.lora_rank=4"), problems)


@pytest.mark.parametrize("kind", ["process_reward", "search"])
def test_of_the_rewards_a_stage_of_values_needs_those_of_answers(recipe, kind):
    def planned(*options):
        later = "{kind='reward_model',name='later'}"
        return plan(recipe(f"stages=[{{kind='{kind}'}},{later}]", NO_VALUE, *options))[0]

    one = planned("rewards.preference.path=stage:later", "rewards.functions=['accuracy', 'code']")
    assert one.read == ()
    assert one.inputs_hash == planned("rewards.weights=[1.0, 0.5]").inputs_hash
    assert one.inputs_hash != planned("rewards.answer_in=box").inputs_hash
    assert one.inputs_hash != planned("rewards.timeout=6").inputs_hash
    with ExitStack() as closing:
        manager = Supplies(0, {}, closing).rewards(one)
        assert manager.rewards.keys() == {"accuracy", "format"}
        samples = [sample(TESTED, wrap("2"))]
        assert manager.rewards["accuracy"](samples).values == [1.0]


def test_the_recipe_of_the_docs_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "docs.toml").write_text(block)
    config = load_config(tmp_path / "docs.toml")
    prm, search = (config.of(stage) for stage in config.stages)
    assert (prm.process_reward.num_rollouts, search.search.value_model) == (1, "stage:prm")


def candidates(answers, worth, votes=None):
    right = [float(one == "1") for one in answers]
    return Candidates(answers, right, worth, votes or worth, "auto")


def test_the_ways_to_choose():
    found = candidates(["2", "1", "2", "3", "1"], [0.1, 0.5, 0.2, 0.7, 0.5])
    assert (voted(found), weighted(found), best_of(found)) == (0, 1, 0)
    assert best_of(found.first(3)) == 1
    assert voted(found.first(1)) == 0
    assert weighted(candidates(["2", "1"], [0.6, 0.5], [0.6, 1.0])) == 1
    nothing = candidates([], [])
    assert (voted(nothing), weighted(nothing), best_of(nothing)) == (0, 0, 0)


def test_votes_have_weights():
    answers, right = ["2", "1", "2.0", None], [0, 1, 0, 0]
    assert vote(answers, right) == 0
    assert vote(answers, right, weights=[0.2, 0.5, 0.2, 9.0]) == 1
    assert vote(answers, right, weights=[0.3, 0.5, 0.3, 0.0]) == 0


def test_an_evaluated_stage_is_a_language_model(recipe):
    """Held-out problems are not asked of a value model, though it is the last stage."""
    assert [p.evaluated for p in plan(recipe('stages=["sft", "process_reward"]'))] == [False] * 2
    assert [p.evaluated for p in plan(recipe('stages=["sft"]'))] == [True]


def test_the_table_on_the_terminal():
    table = {"problems": 2}
    for i, name in enumerate(METHODS):
        table |= {name: i / 10, f"{name}_ci": [0.0, 1.0], f"{name}/tokens": 10.0 * i,
                  f"{name}/judged_tokens": 0.0}  # fmt: skip
    console = Console(record=True, width=120, file=io.StringIO())
    show_search(table, METHODS, console)
    text = console.export_text()
    assert "tree search: the best leaf" in text
    assert "20.0% (0.0% – 100.0%)" in text
