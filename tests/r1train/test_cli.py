import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import r1train.cli
import r1train.run.extras
from r1train.cli import main
from r1train.config.recipe import load_config, to_toml
from r1train.config.schema import RunError
from r1train.run.signals import stopping_signals
from tests.r1train.conftest import RECIPE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "deepseek-v3-mini"\n[grpo]\nmax_steps = 2\n')
    return path


def resolved(capsys, tmp_path):
    path = tmp_path / "printed.toml"
    path.write_text(capsys.readouterr().out)
    return load_config(path)


def test_dry_run_prints_the_resolved_config(recipe, tmp_path, capsys):
    assert main(["run", str(recipe), "--dry-run", "grpo.beta=0.5", "seed=4"]) == 0
    assert resolved(capsys, tmp_path) == load_config(recipe, ["grpo.beta=0.5", "seed=4"])


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_a_stage_alone(recipe, tmp_path, capsys, command):
    assert main([command, "--config", str(recipe), "seed=4", "--dry-run"]) == 0
    config = resolved(capsys, tmp_path)
    assert ([stage.name for stage in config.stages], config.seed) == ([command], 4)


def test_stages_alone_have_no_findings_and_need_no_others(recipe, tmp_path, capsys):
    text = recipe.read_text()
    table = '[[findings]]\ntitle = "a"\nleft = "grpo: pass@1"\nright = "sft: pass@1"\n'
    recipe.write_text(f"seeds = [0, 1]\n{text}{table}")
    assert main(["grpo", str(recipe), "--dry-run"]) == 0
    assert resolved(capsys, tmp_path).findings == ()
    for need in ('init = "sft"', 'rewards.preference.path = "stage:sft"'):
        stages = f'[[stages]]\nkind = "sft"\n[[stages]]\nkind = "rl"\n{need}\n'
        recipe.write_text(f"{text}{stages}")
        assert main(["grpo", str(recipe), "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert "expected a stage before it" in error
        assert "r1train grpo leaves stages of other kinds out, r1train run does not" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "r1-zero-mni"], "unknown recipe 'r1-zero-mni'"),
        (["run"], "name a recipe"),
        (["run", "RECIPE", "grpo.max_step=3"], "did you mean 'max_steps'"),
        (["eval"], "name the run folder"),
        (["eval", "no/such/folder"], "no such folder: no/such/folder"),
        (["eval", "EMPTY", "--config", "RECIPE"], "neither a HuggingFace checkpoint nor a run"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(recipe, tmp_path, capsys, arguments, expected):
    words = {"RECIPE": str(recipe), "EMPTY": str(tmp_path / "empty")}
    (tmp_path / "empty").mkdir()
    assert main([words.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def interrupt():
    raise KeyboardInterrupt


def terminate():
    with stopping_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def diverge():
    raise RunError("the gradient norm is nan:\nlower learning_rate")


def fill_the_disk():
    raise OSError(28, "No space left on device", "runs/a")


@pytest.mark.parametrize(
    ("happens", "status", "message"),
    [
        (interrupt, 130, "interrupted"),
        (terminate, 143, "stopped by SIGTERM"),
        (diverge, 1, "the gradient norm is nan: lower learning_rate"),
        (fill_the_disk, 2, "runs/a: No space left on device"),
    ],
)
def test_how_a_run_ends_is_one_line_and_a_status(
    recipe, monkeypatch, capsys, happens, status, message
):
    monkeypatch.setattr(r1train.cli, "train", lambda *_, **__: happens())
    assert main(["run", str(recipe)]) == status
    assert capsys.readouterr().err == f"r1train: {message}\n"


def test_a_missing_extra_is_named_at_once(recipe, monkeypatch, capsys):
    found = r1train.run.extras.find_spec
    missing = ("matplotlib", "gguf")
    monkeypatch.setattr(
        r1train.run.extras, "find_spec", lambda m: None if m in missing else found(m)
    )
    assert main(["run", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "matplotlib, gguf: not installed" in error
    assert 'pip install "r1kernels[train]"' in error


def test_the_extra_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[>=<]", line)[0] for line in project["optional-dependencies"]["train"]]
    assert sorted(name.replace("-", "_") for name in names) == sorted(r1train.run.extras.MODULES)


def test_eval_takes_settings_and_last_checkpoint_from_the_run(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    for name in ("checkpoint", "checkpoint.partial"):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text("{}")
    (run / "config.toml").write_text(recipe.read_text())
    for folder in (run, run / "checkpoint"):
        assert main(["eval", str(folder), "eval.k=9", "--dry-run"]) == 0
        config = resolved(capsys, tmp_path)
        assert config.model.path == str(run / "checkpoint")
        assert config.model.preset is None
        assert (config.eval.k, config.grpo.max_steps) == (9, 2)


def test_eval_takes_no_reward_model_for_the_last_checkpoint(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    kinds = ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2ForTokenClassification")
    for age, kind in enumerate(kinds):
        (run / kind).mkdir(parents=True)
        (run / kind / "config.json").write_text(json.dumps({"architectures": [kind]}))
        os.utime(run / kind / "config.json", (age, age))
    (run / "config.toml").write_text(recipe.read_text())
    assert main(["eval", str(run), "--dry-run"]) == 0
    assert resolved(capsys, tmp_path).model.path == str(run / "Qwen2ForCausalLM")


def test_eval_of_several_seeds_asks_for_one(recipe, tmp_path, capsys):
    study = tmp_path / "study"
    (study / "seed-3" / "checkpoint").mkdir(parents=True)
    (study / "seed-3" / "checkpoint" / "config.json").write_text("{}")
    (study / "config.toml").write_text("seeds = [3, 5]\n" + recipe.read_text())
    assert main(["eval", str(study), "--dry-run"]) == 2
    assert f"name one, such as {study}/seed-3" in capsys.readouterr().err
    (study / "seed-3" / "config.toml").write_text(recipe.read_text())
    assert main(["eval", str(study / "seed-3"), "--dry-run"]) == 0


def test_eval_writes_json(recipe, tmp_path):
    from r1train.model.load import load_model
    from r1train.run.export import save_checkpoint

    sizes = ["task.train_size=4", "task.heldout_size=3", "rollout.max_completion_length=3"]
    config = load_config(recipe, sizes)
    save_checkpoint(*load_model(config, ["1 + 2"]), tmp_path / "checkpoint")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert main(["eval", str(tmp_path), "eval.k=2"]) == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert (figures["problems"], figures["completions_per_problem"]) == (3, 2)
    assert 0 <= figures["pass@1"] <= 1
    assert 0 < figures["mean_length"] <= 3


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, r1train.cli\n"
        "try: r1train.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'rich', 'matplotlib', 'reasoning_gym'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_doctor_lists_kernels_and_recipes(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "linear_logprob" in text
    assert "reasoning-gym" in text
    assert "r1-zero-mini" in text


def test_a_run_finds_its_files_from_any_folder(tmp_path, monkeypatch, capsys):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "data").mkdir(parents=True)
    elsewhere.mkdir()
    rows = [{"prompt": f"What is half of {i}?", "answer": i / 2} for i in range(10)]
    (home / "data" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "own.py").write_text(
        "def short(completions, **_):\n    return [0.0] * len(completions)"
    )
    (home / "tiny.toml").write_text(RECIPE)
    monkeypatch.chdir(home)
    own = ["task.datasets=[{path='data/a.jsonl'}]", "task.train_size=none", "task.heldout_size=2"]
    options = ["rewards.functions=['own.py:short']", "stages=['grpo']", "grpo.max_steps=1"]
    assert main(["run", "tiny.toml", *own, *options, "eval.k=1"]) == 0
    before = (home / "runs" / "tiny" / "plan.json").read_text()
    (home / "runs" / "tiny" / "grpo" / "artifact.json").unlink()
    capsys.readouterr()

    monkeypatch.chdir(elsewhere)
    assert main(["resume", "../home/runs/tiny"]) == 0
    assert f"are those of {home}" in " ".join(capsys.readouterr().out.split())
    assert Path.cwd() == elsewhere
    assert (home / "runs" / "tiny" / "plan.json").read_text() == before
    assert main(["eval", "../home/runs/tiny"]) == 0
    (elsewhere / "b.jsonl").write_text((home / "data" / "a.jsonl").read_text())
    assert main(["eval", "../home/runs/tiny", "task.datasets=[{path='b.jsonl'}]"]) == 0
    assert not (elsewhere / "runs").exists()

    (home / "runs" / "tiny" / "started.json").unlink()  # as runs of earlier versions are
    assert main(["eval", "../home/runs/tiny", "--config", "../home/runs/tiny/config.toml"]) == 2
    assert main(["resume", "../home/runs/tiny"]) == 2
    monkeypatch.chdir(home)
    assert main(["resume", "runs/tiny"]) == 0


@pytest.mark.parametrize(
    ("command", "said", "unsaid"),
    [
        (
            "run",
            ["--resume", "r1train run r1-zero-mini", "recipe"],
            ["--suite", "--json", "doctor"],
        ),
        ("resume", ["run folder", "r1train resume runs/"], ["--resume", "--config", "section.key"]),
        ("eval", ["--suite", "--harness", "--dry-run"], ["--resume", "--json", "r1train run"]),
        ("plan", ["--json", "8xH100"], ["--suite", "--dry-run"]),
        ("doctor", ["versions"], ["--config", "source", "examples"]),
    ],
)
def test_the_help_of_a_command_is_its_own(command, said, unsaid, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: r1train {command} [-h]" in text
    assert [word for word in said if word not in text] == []
    assert [word for word in unsaid if word in text] == []


def test_the_help_without_a_command_has_all_of_them(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name, command in r1train.cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.does)}$", text, re.M)
