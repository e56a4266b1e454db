"""Options that name what an earlier stage has left."""

from __future__ import annotations

import json

import pytest

from r1train import stages
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.sft import DemonstrationsConfig, SFTConfig
from r1train.run.artifacts import plan
from r1train.run.references import references, resolved
from r1train.run.runner import run
from r1train.stages.base import Stage

SFT = SFTConfig(datasets=(DemonstrationsConfig("stage:solve"), DemonstrationsConfig("own.jsonl")))


class Solve(Stage):
    """Leaves a demonstration for every training problem."""

    leaves = "samples"
    uses = ("task", "rollout")

    def run(self, folder):
        folder.mkdir(exist_ok=True)
        path = folder / "samples.jsonl"
        rows = [{"prompt": p.question, "completion": p.answer} for p in self.context.train]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@pytest.fixture(autouse=True)
def solve(monkeypatch):
    monkeypatch.setitem(stages.KINDS, "solve", f"{__name__}:Solve")


READS = [
    "stages=[{kind='solve', evaluate=false},"
    "{kind='sft', sft={datasets=[{path='stage:solve'}], max_steps=2}, evaluate=false}]"
]


def test_references_are_found_by_key_and_name():
    assert list(references(SFT, "sft")) == [("sft.datasets.0.path", "solve")]


def test_a_path_takes_the_place_of_a_reference_and_of_nothing_else():
    found = resolved(SFT, lambda name: f"runs/{name}.jsonl")
    assert [dataset.path for dataset in found.datasets] == ["runs/solve.jsonl", "own.jsonl"]
    assert found.datasets[1] is SFT.datasets[1]
    assert resolved(SFTConfig(), str) == SFTConfig()


def test_a_stage_reads_what_another_has_left(config):
    settings = config(*READS)
    first = run(settings)
    assert list(first["stages"]) == ["solve", "sft"]
    again = run(settings)
    assert again["folder"] == first["folder"]  # all is finished, and known to be


def test_what_is_made_of_another_stage_has_another_hash(config):
    solve, sft = plan(config(*READS))
    other = plan(config(*READS, "stages.solve.rollout.max_completion_length=13"))
    assert sft.needs[-1] is solve
    assert [one.inputs_hash for one in other] != [solve.inputs_hash, sft.inputs_hash]
    assert other[1].inputs_hash != sft.inputs_hash


def test_a_reference_to_no_stage_before_is_refused():
    reason = r"stage 'sft': sft.datasets.0.path = 'stage:solve': expected a stage before it"
    with pytest.raises(ConfigError, match=reason):
        plan(Config(stages=("sft",), sft=SFT))


@pytest.mark.parametrize(
    ("source", "reader"),
    [
        ("sft", {"kind": "sft", "sft": {"datasets": [{"path": "stage:a"}]}}),
        ("sft", {"kind": "rejection", "rejection": {"mix": [{"path": "stage:a"}]}}),
        ("sft", {"kind": "reward_model", "reward_model": {"datasets": [{"path": "stage:a"}]}}),
        ("solve", {"kind": "on_policy_distill", "distill": {"teacher": "stage:a"}}),
        ("process_reward", {"kind": "rl", "rewards": {"preference": {"path": "stage:a"}}}),
        ("process_reward", {"kind": "rl", "rewards": {"safety": {"path": "stage:a"}}}),
        ("reward_model", {"kind": "search", "search": {"value_model": "stage:a"}}),
    ],
)
def test_a_reference_to_something_else_than_is_read_is_refused(source, reader):
    with pytest.raises(ConfigError, match=r"= 'stage:a': expected a stage that leaves '\w+', and"):
        plan(Config(stages=({"kind": source, "name": "a"}, {**reader, "name": "b"})))


@pytest.mark.parametrize("kind", ["reward_model", "process_reward", "sample", "search"])
def test_only_a_stage_that_trains_a_model_that_answers_is_evaluated(kind):
    with pytest.raises(ConfigError, match=rf"stage '{kind}': evaluate = True: it trains no model"):
        plan(Config(stages=({"kind": kind, "evaluate": True},)))
