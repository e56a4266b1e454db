from __future__ import annotations

import json
import os
import signal
from itertools import islice

import pytest
import torch

from r1train.config.recipe import load_config
from r1train.data.epochs import draw, others
from r1train.learn.grpo import Learner
from r1train.run.runner import run
from r1train.run.signals import Stopped
from r1train.stages.rl import RL
from r1train.stages.sft import SFT


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "tiny"


def test_a_run_leaves_a_complete_folder(config, folder):
    summary = run(config())
    assert {path.name for path in folder.iterdir()} >= {
        *("config.toml", "metrics.jsonl", "samples.jsonl", "summary.json", "training.png"),
        *("reward.png", "checkpoint", "plan.json"),
    }
    assert (folder / "checkpoint").resolve() == folder / "grpo" / "checkpoint"
    assert (folder / "grpo" / "checkpoint-2" / "model.safetensors").is_file()
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary["pass@1"]) == {"before", "after"}
    assert summary["seconds"] > 0
    assert not summary["interrupted"]
    steps = [(r["stage"], r["step"], "eval/pass@1" in r) for r in records(folder)]
    sft = [("sft", step, False) for step in (1, 2, 3)]
    grpo = [("grpo", step, evaluated) for step, evaluated in
            [(0, True), (1, False), (2, False), (2, True), (3, False), (3, True)]]  # fmt: skip
    assert steps == sft + grpo
    assert load_config(folder / "config.toml") == config()


def test_a_run_repeats_exactly(config, tmp_path):
    for name in ("one", "two"):
        output = f"output_dir={tmp_path}/{name}"
        run(config("threads=2", "grpo.max_steps=2", "grpo.save_steps=0", output))
    timed = ("seconds/", "tokens_per_second", "peak_memory_gib")
    first, second = (
        [{k: v for k, v in r.items() if not k.startswith(timed)} for r in records(folder)]
        for folder in (tmp_path / "one" / "tiny", tmp_path / "two" / "tiny")
    )
    assert first == second
    samples = [records(tmp_path / name / "tiny", "samples.jsonl") for name in ("one", "two")]
    assert samples[0] == samples[1]


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)  # what SLURM and docker stop send


def fail():
    raise ArithmeticError("an engine caught fire")


@pytest.mark.parametrize(
    ("happens", "raised", "stopped_by"),
    [
        (interrupt, KeyboardInterrupt, "KeyboardInterrupt"),
        (terminate, Stopped, "Stopped: SIGTERM"),
        (fail, ArithmeticError, "ArithmeticError: an engine caught fire"),
    ],
)
def test_whatever_ends_a_run_leaves_a_usable_folder(
    config, folder, monkeypatch, capsys, happens, raised, stopped_by
):
    start = Learner.start

    def interrupted(self, *arguments):
        if self.steps == 1:
            happens()
        return start(self, *arguments)

    monkeypatch.setattr(Learner, "start", interrupted)
    with pytest.raises(raised):
        run(config('stages=["grpo"]'))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"]
    assert summary["stopped_by"] == stopped_by
    assert "before" in summary["pass@1"]
    assert records(folder)[-1]["step"] == 1
    assert (folder / "checkpoint" / "model.safetensors").is_file()
    assert "interrupted" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_before_any_evaluation_leaves_one_too(config, folder, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(SFT, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config())
    assert "pass@1" not in json.loads((folder / "summary.json").read_text())
    assert (folder / "checkpoint" / "config.json").is_file()


def test_a_stage_can_start_from_a_checkpoint(config, folder):
    run(config('stages=["sft"]'))
    assert {r["stage"] for r in records(folder)} == {"sft"}
    path = folder / "checkpoint"
    summary = run(
        config('stages=["grpo"]', "model.preset=none", f"model.path={path}", "grpo.max_steps=1")
    )
    after_sft = json.loads((folder / "summary.json").read_text())["pass@1"]["after"]
    assert summary["pass@1"]["before"] == after_sft


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda_needs_no_other_settings(config):
    summary = run(config("device=cuda", "grpo.num_minibatches=2", "grpo.beta=0.01"))
    assert summary["pass@1"].keys() == {"before", "after"}


def test_an_epoch_has_every_problem_once():
    problems = list("abcdefg")
    drawn = [problem for step in range(1, 8) for problem in draw(problems, 3, step, 0)]
    epochs = [drawn[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == problems for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert draw(problems, 3, 4, 0) == drawn[9:12]  # no state: any step can be asked for
    assert draw(problems, 7, 1, 1) != draw(problems, 7, 1, 0)


def test_what_a_step_adds_is_what_it_has_not_drawn():
    problems = list("abcdefg")
    for step in range(1, 6):
        drawn = draw(problems, 3, step, 0)
        added = [*islice(others(problems, 3, step, 0), 4 + 7)]
        assert sorted({*drawn, *added[:4]}) == problems
        assert sorted(added[4:]) == problems  # of fewer than are asked for, all of them again
        assert [*islice(others(problems, 3, step, 0), 11)] == added
    assert added != [*islice(others(problems, 3, step, 1), 11)]


def test_groups_without_a_gradient_are_replaced_by_problems_that_the_step_has_not(
    config, monkeypatch
):
    """A model that has learned nothing gives all of them the same reward."""
    asked, sample = {}, RL.sample

    def recording(self, drawn, *rest):
        asked.setdefault(self.step, []).extend(problem.index for problem in drawn)
        return sample(self, drawn, *rest)

    monkeypatch.setattr(RL, "sample", recording)
    fewer = "task.train_size=6", "task.heldout_size=2"
    run(config('stages=["grpo"]', "grpo.max_extra_rollouts=2", "grpo.eval_steps=0", *fewer))
    assert [len(numbers) for numbers in asked.values()] == [6, 6, 6]
    assert all(len({*numbers}) == 6 for numbers in asked.values())
