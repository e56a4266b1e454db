"""Recipes of stages: their own options, where their models come from, what is not repeated."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest

from r1train.config.recipe import documented, load_config, to_toml
from r1train.config.schema import ConfigError, RunError
from r1train.config.sections import Config
from r1train.config.sft import DemonstrationsConfig
from r1train.config.stages import StageConfig
from r1train.data.demonstrations import check_demonstrations
from r1train.run import artifacts, checksums, choice
from r1train.run.artifacts import difference, plan
from r1train.run.folder import RunFolder
from r1train.run.runner import resume, run
from r1train.run.supplies import Supplies
from r1train.stages import check_stages
from r1train.stages.evaluate import Evaluate
from r1train.stages.rl import RL
from tests.r1train.kills import left

STAGES = """
[[stages]]
kind = "sft"
name = "base"

[[stages]]
kind = "rl"
name = "zero"
[stages.grpo]
max_steps = 1
learning_rate = 1e-4
[stages.task]
datasets = [{ name = "chain_sum", params = { max_terms = 3, max_digits = 1 } }]

[[stages]]
kind = "sft"
name = "again"
init = "base"
[stages.sft]
max_steps = 2

[[stages]]
kind = "evaluate"
name = "exam"
init = "zero"
"""


@pytest.fixture
def recipe(tmp_path):
    """The tiny recipe with four stages, as `recipe(*overrides)`."""
    from tests.r1train.conftest import RECIPE

    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("eval_steps = 2", "eval_steps = 0") + STAGES)
    return lambda *overrides: load_config(path, [f"output_dir={tmp_path}/runs", *overrides])


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_stages_have_options_of_their_own(recipe):
    base, zero, again, _ = plan(recipe())
    assert [p.config.sft.max_steps for p in (base, zero, again)] == [3, 3, 2]
    assert zero.config.grpo.learning_rate == 1e-4
    assert zero.config.grpo.prompts_per_step == 2  # of the recipe
    assert zero.config.task.datasets[0].params == {"max_terms": 3, "max_digits": 1}
    assert zero.config.task.train_size == 32
    assert base.config.task.datasets[0].params["max_terms"] == 2
    assert len({p.seed for p in (base, zero, again)}) == 3


@pytest.mark.parametrize("write", [to_toml, documented])
def test_stages_are_written_as_they_are_read(recipe, tmp_path, write):
    path = tmp_path / "written.toml"
    path.write_text(write(recipe()))
    assert load_config(path) == recipe()


def test_an_override_reaches_one_stage(recipe):
    config = recipe("stages.zero.grpo.max_steps=7", "stages.again.init=zero", "sft.max_steps=5")
    _, zero, again, _ = plan(config)
    assert (zero.config.grpo.max_steps, again.config.sft.max_steps) == (7, 2)
    assert (again.init.name, plan(config)[0].config.sft.max_steps) == ("zero", 5)
    with pytest.raises(ConfigError, match=r"no stage 'zeor': did you mean 'zero'\?"):
        recipe("stages.zeor.grpo.max_steps=7")


def test_a_list_of_kinds_is_a_list_of_stages():
    config = Config(stages=("sft", "grpo", "sft", "grpo"))
    kinds = [(stage.kind, stage.name) for stage in config.stages]
    assert kinds == [("sft", "sft"), ("rl", "grpo"), ("sft", "sft-2"), ("rl", "grpo-2")]
    seeds = {p.seed for p in plan(config)}
    assert len(seeds) == 4  # each draws its own
    assert [p.init and p.init.name for p in plan(config)] == [None, "sft", "grpo", "sft-2"]


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (("sfft",), r"stage 'sfft': kind = 'sfft': did you mean 'sft'\?"),
        (({"name": "a"},), "expected a table with a kind"),
        (({"kind": "sft", "gpro": {}},), r"unknown key 'gpro' in stages\[0\]"),
        (({"kind": "sft", "sft": {"max_step": 1}},), r"stage 'sft': unknown key 'max_step'"),
        (({"kind": "sft", "sft": {"max_steps": 0}},), r"stage 'sft': sft.max_steps = 0"),
        (({"kind": "rl", "name": "a/b"},), "stages.name = 'a/b'"),
        (({"kind": "sft", "init": "x", "name": "a"}, {"kind": "rl", "init": "y", "name": "a"}),
         "two are named 'a'"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_is_named(stages, reason):
    with pytest.raises(ConfigError, match=reason):
        check_stages(Config(stages=stages))


def test_where_a_model_cannot_come_from():
    stages = (StageConfig("sft", name="a"), StageConfig("rl", init="b"))
    reason = r"stage 'rl': init = 'b': expected a stage before it that leaves a model \(a\), a H"
    with pytest.raises(ConfigError, match=reason):
        plan(Config(stages=stages))
    with pytest.raises(ConfigError, match=r"init = 'preset:nope': expected .* preset:smollm2"):
        plan(Config(stages=(StageConfig("sft", init="preset:nope"),)))


def test_a_recipe_runs_stage_by_stage(recipe, tmp_path, capsys):
    summary = run(recipe())
    folder = tmp_path / "runs" / "tiny"
    steps = [(r["stage"], r["step"]) for r in records(folder)]
    assert steps == [
        *(("base", step) for step in (1, 2, 3)),
        ("zero", 1),
        *(("again", step) for step in (1, 2)),
        ("exam", 0),
    ]
    assert list(summary["stages"]) == ["base", "zero", "again", "exam"]
    table = json.loads((folder / "exam" / "table.json").read_text())
    assert summary["pass@1"]["after"] == table["pass@1"]
    capsys.readouterr()

    # Again: nothing to do. With another learning rate of one stage: what depends on it, only.
    assert run(recipe()) == summary
    assert "every stage is finished" in capsys.readouterr().out
    run(recipe("stages.zero.grpo.learning_rate=2e-4"))
    said = capsys.readouterr().out
    assert f"base: taken from {folder}/base: its inputs are the same" in said
    assert "zero: run again" in said
    assert "grpo.learning_rate is 0.0002, was 0.0001" in said
    assert f"again: taken from {folder}/again" in said
    assert "exam: run again" in said
    assert "the stage it starts from is another" in said
    second = tmp_path / "runs" / "tiny-2"
    assert [(r["stage"], r["step"]) for r in records(second)] == steps
    assert (second / "base" / "artifact.json").exists()
    assert not (second / "base" / "checkpoint").exists()  # it is the other run's


def test_what_a_stage_is_made_from_is_more_than_options(recipe, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    jsonl = f'task.datasets=[{{jsonl="{data}"}}]'
    first = plan(recipe(jsonl))[0].inputs
    data.write_text('{"prompt": "1 + 1", "answer": "3"}\n')
    second = plan(recipe(jsonl))[0].inputs
    assert difference(second, first) == f"the contents of {data} changed"
    assert plan(recipe("seed=1"))[0].inputs_hash != plan(recipe())[0].inputs_hash
    for same in ("grpo.log_completions_steps=1", "keep_checkpoints=5", "rewards.workers=2"):
        assert [p.inputs_hash for p in plan(recipe(same))] == [
            p.inputs_hash for p in plan(recipe())
        ]


def test_the_code_of_a_reward_is_what_a_stage_is_made_from(recipe, tmp_path, monkeypatch):
    package = tmp_path / "own_package" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise AssertionError('imported')")
    for spec, file in (
        (f"{tmp_path}/mine.py:f", tmp_path / "mine.py"),
        ("own_package.inner.rewards:f", package / "rewards.py"),
    ):
        monkeypatch.chdir(tmp_path)
        hashes = []
        for code in ("def f(completions): ...", "def f(completions): return []"):
            file.write_text(code)
            hashes.append(plan(recipe(f'rewards.functions=["{spec}"]'))[0].inputs)
        assert difference(hashes[1], hashes[0]) == f"the contents of {file} changed"


def test_a_finished_stage_whose_model_is_gone_is_run_again(recipe, tmp_path):
    options = ('stages=["sft"]', "sft.max_steps=1")
    run(recipe(*options))
    folder = tmp_path / "runs" / "tiny"
    assert artifacts.finished(folder)["sft"].there
    shutil.rmtree(folder / "sft" / "checkpoint")
    assert not artifacts.finished(folder)["sft"].there
    run(recipe(*options))
    assert (tmp_path / "runs" / "tiny-2" / "sft" / "checkpoint").is_dir()


def damage_tail(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_tail, r"checkpoint/model\.safetensors has \d+ bytes instead of \d+"),
        (damage_bit, r"checkpoint/model\.safetensors is not what was written"),
        (os.remove, r"checkpoint/model\.safetensors is missing"),
    ],
)
def test_a_finished_stage_whose_model_is_damaged_is_run_again(
    recipe, tmp_path, capsys, damage, reason
):
    options = ('stages=["sft"]', "sft.max_steps=1")
    folder = tmp_path / "runs" / "tiny"
    run(recipe(*options))
    model = folder / "sft" / "checkpoint" / "model.safetensors"
    whole = model.read_bytes()
    damage(model)
    capsys.readouterr()
    run(recipe(*options))
    assert re.search(f"sft: run again, not taken from {folder}/sft: {reason}", said(capsys))
    resume(folder)
    assert re.search(f"sft: run again: {reason}", said(capsys))
    assert model.read_bytes() == whole


def test_a_finished_stage_without_checksums_is_run_again(recipe, tmp_path, capsys):
    options = ('stages=["sft"]', "sft.max_steps=1")
    folder = tmp_path / "runs" / "tiny"
    run(recipe(*options))
    file = folder / "sft" / "artifact.json"
    record = json.loads(file.read_text())
    del record["files"]  # as before there were any
    file.write_text(json.dumps(record))
    capsys.readouterr()
    run(recipe(*options))
    reason = "its record has no checksums, since an earlier version wrote it"
    assert f"sft: run again, not taken from {folder}/sft: {reason}" in said(capsys)
    resume(folder)
    assert f"sft: run again: {reason}" in said(capsys)


def test_a_stage_that_is_run_again_leaves_the_lines_of_those_after_it(
    recipe, tmp_path, monkeypatch
):
    options = ('stages=["sft", "grpo"]', "sft.max_steps=2", "grpo.max_steps=2")
    options += ("grpo.save_steps=1", "eval.limit=2", "stages.sft.evaluate=true")
    run(recipe(*options, "name=unbroken"))
    folder, prepare = tmp_path / "runs" / "tiny", RL.prepare
    with monkeypatch.context() as patch:
        patch.setattr(RL, "prepare", lambda self: interrupt() if self.step else prepare(self))
        with pytest.raises(KeyboardInterrupt):
            run(recipe(*options))
    damage_bit(folder / "sft" / "checkpoint" / "model.safetensors")
    resume(folder)
    assert left(folder) == left(folder.with_name("unbroken"))


def said(capsys):
    return capsys.readouterr().out


def test_a_stage_starts_from_no_damaged_model(recipe, tmp_path, capsys):
    folder = tmp_path / "runs" / "tiny"
    run(recipe('stages=["sft"]', "sft.max_steps=1"))
    damage_bit(folder / "sft" / "checkpoint" / "config.json")
    run(recipe('stages=["sft", "evaluate"]', "sft.max_steps=1"))
    assert f"sft: run again, not taken from {folder}/sft: checkpoint/config.json" in said(capsys)


def test_a_stage_that_other_code_finished_is_not_repeated_and_that_is_said(
    recipe, tmp_path, capsys, monkeypatch
):
    options = ('stages=["sft"]', "sft.max_steps=1")
    summary = run(recipe(*options))
    assert run(recipe(*options)) == summary
    assert "other code" not in said(capsys)
    monkeypatch.setattr(choice, "code_hash", lambda: "another")
    assert run(recipe(*options)) == summary
    folder = tmp_path / "runs" / "tiny" / "sft"
    assert f"{folder}: finished by other code than this, and not repeated" in said(capsys)


def test_data_and_models_are_read_when_a_run_asks_what_it_is_made_from(
    recipe, tmp_path, monkeypatch
):
    """Once, however many stages there are, and not by an evaluation of a model alone."""
    data, read = tmp_path / "data.jsonl", []
    data.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    true = checksums.digest
    monkeypatch.setattr(checksums, "digest", lambda path: read.append(path) or true(path))
    plans = plan(recipe(f'task.datasets=[{{jsonl="{data}"}}]', 'stages=["sft", "grpo"]'))
    assert read == []
    assert len({one.inputs_hash for one in plans}) == 2
    assert read == [data]


def test_a_model_that_nobody_starts_from_any_more_may_go(recipe, tmp_path, monkeypatch):
    """The first stage's, to free the disk, when the last one was broken off."""
    folder = tmp_path / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe())
    before = (folder / "metrics.jsonl").read_text()
    shutil.rmtree(folder / "base" / "checkpoint")
    resume(folder)
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert not (folder / "base" / "checkpoint").exists()


def test_a_stage_whose_model_is_needed_again_is_run_again(recipe, tmp_path, capsys):
    folder = tmp_path / "runs" / "tiny"
    run(recipe())
    before = [(line["stage"], line["step"], line.get("loss")) for line in records(folder)]
    for name in ("base", "zero"):
        shutil.rmtree(folder / name / "checkpoint")
    (folder / "exam" / "artifact.json").unlink()
    resume(folder)
    assert re.search(r"base: run again: checkpoint/.* is", capsys.readouterr().out)
    again = [(line["stage"], line["step"], line.get("loss")) for line in records(folder)]
    assert again == before


def test_a_finished_stage_that_is_to_be_evaluated_later_is_run_again(recipe, tmp_path, capsys):
    folder = tmp_path / "runs" / "tiny"
    run(recipe('stages=["sft", "evaluate"]', "sft.max_steps=1"))
    text = to_toml(load_config(folder / "config.toml", ["stages.sft.evaluate=true"]))
    (folder / "config.toml").write_text(text)
    resume(folder)
    assert "sft: run again: it was not evaluated" in capsys.readouterr().out
    assert [line["step"] for line in records(folder) if "eval/pass@1" in line] == [0, 1, 0]


def interrupt(*_):
    raise KeyboardInterrupt


def fail(*_):
    raise RunError("the judge does not answer")


@pytest.mark.parametrize(
    ("ends", "reason", "second"),
    [
        (fail, "failed (RunError: the judge does not answer): it is gone on with", "tiny"),
        (interrupt, "is at work, or was broken off; to go on with it: r1train resume", "tiny-2"),
    ],
)
def test_a_run_goes_on_with_one_that_failed_and_not_with_one_that_was_broken_off(
    recipe, tmp_path, monkeypatch, capsys, ends, reason, second
):
    config, folder = recipe('stages=["evaluate"]'), tmp_path / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "run", ends)
        with pytest.raises((RunError, KeyboardInterrupt)):
            run(config)
    assert f"r1train resume {folder}" in said(capsys)
    summary = run(config)
    assert f"{folder} {reason}" in said(capsys)
    assert summary["folder"] == str(folder.with_name(second))
    assert "stopped_by" not in summary
    assert run(config) == summary


def test_a_run_that_failed_and_is_at_work_again_is_left_alone(
    recipe, tmp_path, monkeypatch, capsys
):
    config, folder = recipe('stages=["evaluate"]'), tmp_path / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "run", fail)
        with pytest.raises(RunError):
            run(config)
    with RunFolder(folder).locked():
        assert run(config)["folder"] == str(folder.with_name("tiny-2"))
    assert f"{folder} is at work, or was broken off" in said(capsys)


def test_evaluation_has_the_weights_of_the_moment(recipe, tmp_path):
    """Where the engine samples from a copy, too."""
    tables = []
    for dtype in ("none", "float32"):
        run(recipe(f"rollout.dtype={dtype}", 'stages=["sft"]', "name=" + dtype, "sft.max_steps=20"))
        tables.append(records(tmp_path / "runs" / dtype, "samples.jsonl")[-8:])
    assert [r["completion"] for r in tables[0]] == [r["completion"] for r in tables[1]]


PAIRS = [{"prompt": f"What is {i}?", "chosen": "1", "rejected": "2"} for i in range(4)]
LATER = {
    "sft": ("sft", "datasets", "the prompt is 7: expected text"),
    "rejection": ("rejection", "mix", 'no "completion"; its keys are "prompt", "chosen"'),
    "reward_model": ("reward_model", "datasets", "a pair, and pointwise learning needs one"),
}


@pytest.mark.parametrize("kind", LATER)
def test_what_a_later_stage_cannot_read_is_said_before_the_first_is_run(
    recipe, tmp_path, monkeypatch, kind
):
    section, option, reason = LATER[kind]
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": 7, "completion": "1"}] if kind == "sft" else PAIRS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(Supplies, "load", None)  # no model is needed for it
    own = {section: {option: [{"path": str(path)}]}}
    if kind == "reward_model":
        own[section]["objective"] = "pointwise"
    later = StageConfig(kind, name="later", init="base", sections=own)
    config = recipe()
    config = replace(config, stages=(*config.stages, later))
    with pytest.raises(ConfigError, match=rf"stage 'later': .*rows\.jsonl, line 1: .*{reason}"):
        run(config)
    assert not (tmp_path / "runs").exists()
    path.unlink()
    where = rf"stage 'later': {section}\.{option}\[0\]\.path = '.*rows\.jsonl': no such file"
    with pytest.raises(ConfigError, match=where):
        run(config)


def test_the_problems_of_a_stage_that_waits_for_another_are_looked_at(recipe, tmp_path):
    """Whose own reward model has yet to be trained."""
    path = tmp_path / "general.jsonl"
    path.write_text('{"prompt": "What is 1?", "answer": null}\n')
    judge = StageConfig(
        "reward_model",
        name="judge",
        init="base",
        sections={"reward_model": {"datasets": [{"path": "stage:said", "score_field": "reward"}]}},
    )
    later = StageConfig(
        "rl",
        name="later",
        init="base",
        sections={
            "rewards": {"functions": ["preference"], "preference": {"path": "stage:judge"}},
            "task": {"datasets": [{"path": str(path)}, {"path": "stage:said"}]},
        },
    )
    config = recipe()
    said = StageConfig("sample", name="said", init="base")
    config = replace(config, stages=(*config.stages, said, judge, later))
    with pytest.raises(ConfigError, match=r"stage 'later': .*line 1: the answer is null"):
        run(config)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_are_skipped_are_looked_at_until_one_is_good(recipe, tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    lines = ['{"prompt": 7}\n', '{"prompt": "a", "completion": "b"}\n']
    path.write_text("".join(lines[:rows]))
    dataset = DemonstrationsConfig(str(path), on_bad_row="skip")
    with pytest.raises(ConfigError, match='no "completion"') if rows == 1 else nullcontext():
        check_demonstrations((dataset,), recipe().task, "sft.datasets")


def test_a_base_that_a_later_stage_starts_from_is_said_how_to_get(tmp_path):
    with pytest.raises(ConfigError, match="hf download deepseek-ai/DeepSeek-V3-Base --local-dir D"):
        plan(load_config("r1", [f"output_dir={tmp_path}"]))
