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


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (["sft"], r"stage 'sft': sft.datasets.0.path = 'stage:solve': expected a stage before it"),
        (["rl:solve", "sft"], r"it leaves a checkpoint, and no samples to read"),
    ],
)
def test_a_reference_to_nothing_that_can_be_read_is_refused(kinds, reason):
    named = [dict(zip(("kind", "name"), kind.split(":"), strict=False)) for kind in kinds]
    with pytest.raises(ConfigError, match=reason):
        plan(Config(stages=tuple(named), sft=SFT))
