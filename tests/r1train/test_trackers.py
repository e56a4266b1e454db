"""Trackers are told what metrics.jsonl holds, and stop nothing. Their packages are stand-ins."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.report.trackers import TRACKERS, check_trackers
from r1train.run.folder import RunFolder


class Package:
    """Stands for a tracker's package and its run; remembers its calls."""

    def __init__(self):
        self.id, self.name = "abc", "demo"
        self.calls = []
        self.fails = set()

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name in self.fails:
                raise OSError("no network")
            self.calls.append((name, *arguments, options) if options else (name, *arguments))
            return self

        return call


@pytest.fixture
def package(monkeypatch):
    """The stand-in for every tracker's package."""
    package = Package()
    entries = {"init": package.init, "SummaryWriter": package.init}
    for name in ("tensorboard", "torch.utils.tensorboard", "trackio", "wandb"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    return package


def folder_of(tmp_path, *names):
    config = Config(name="demo", output_dir=str(tmp_path), report_to=names)
    folder = RunFolder.create(config)
    folder.report(config)
    return folder


def logged(folder):
    folder.log(1, {"loss": 2.0, "kl": math.nan}, stage="sft")
    folder.log(1, {"reward": 1, "eval/pass@1_ci": [0.1, 0.2], "note": "x"}, stage="grpo")
    folder.close()
    folder.log(2, {"reward": 1})  # told to nobody


def test_tensorboard(tmp_path, package):
    logged(folder_of(tmp_path, "tensorboard"))
    sft, grpo, closed = package.calls[:3], package.calls[3:6], package.calls[6:]
    for (opened, config, _), stage in ((sft, "sft"), (grpo, "grpo")):
        options = {"flush_secs": 10, "purge_step": 0}
        assert opened == ("init", tmp_path / "demo" / "tensorboard" / stage, options)
        assert config[:2] == ("add_text", "config")
        assert "name = 'demo'" in config[2]
    assert sft[2] == ("add_scalar", "sft/loss", 2.0, 1)
    assert grpo[2] == ("add_scalar", "grpo/reward", 1.0, 1)
    assert closed == [("close",), ("close",)]


def test_trackio(tmp_path, package):
    logged(folder_of(tmp_path, "trackio"))
    (_, opened), *figures, closed = package.calls
    assert (opened["project"], opened["name"], opened["resume"]) == ("r1train", "demo", "never")
    assert opened["config"]["grpo"]["beta"] == 0.001
    assert figures == [
        ("log", {"sft/loss": 2.0}, {"step": 1}),
        ("log", {"grpo/reward": 1.0}, {"step": 1}),
    ]
    assert closed == ("finish",)


def test_wandb_counts_the_steps_of_each_stage(tmp_path, package):
    folder = folder_of(tmp_path, "wandb")
    folder.log(3, {"loss": 2.0}, stage="sft")
    folder.log(0, {"reward": 1.0})
    folder.log(1, {"reward": 2.0})
    folder.close()
    (_, opened), *calls = package.calls
    assert (opened["project"], opened["name"], opened["dir"]) == ("mine", "demo", str(folder.path))
    assert calls == [
        ("define_metric", "sft/step"),
        ("define_metric", "sft/*", {"step_metric": "sft/step"}),
        ("log", {"sft/loss": 2.0, "sft/step": 3}),
        ("define_metric", "grpo/step"),
        ("define_metric", "grpo/*", {"step_metric": "grpo/step"}),
        ("log", {"grpo/reward": 1.0, "grpo/step": 0}),
        ("log", {"grpo/reward": 2.0, "grpo/step": 1}),
        ("finish",),
    ]


def test_a_run_that_goes_on_is_the_same_run(tmp_path, package):
    names = ("tensorboard", "trackio", "wandb")
    package.name = "demo-brave-otter"  # trackio had a "demo" already
    folder = folder_of(tmp_path, *names)
    for step in (1, 2, 3):
        folder.log(step, {"reward": 1.0})
    folder.close()
    package.calls.clear()

    again = RunFolder(folder.path)
    again.report(Config(name="demo", output_dir=str(tmp_path), report_to=names))
    again.resume("grpo", 2, {})  # a checkpoint of step 2 was the last that is whole
    again.log(3, {"reward": 1.0})
    trackio, wandb, tensorboard = (call[-1] for call in package.calls if call[0] == "init")
    assert (trackio["name"], trackio["resume"]) == ("demo-brave-otter", "allow")
    assert (wandb["id"], wandb["resume"]) == ("abc", "allow")
    assert tensorboard["purge_step"] == 3


def test_the_next_run_of_a_name_is_another_run(tmp_path, package):
    for name in ("demo", "demo-2"):
        folder_of(tmp_path, "trackio").close()
        assert package.calls[-2][-1]["name"] == name


def test_what_fails_is_warned_of_once_and_the_others_go_on(tmp_path, package, caplog):
    folder = folder_of(tmp_path, "trackio", "tensorboard")
    package.fails = {"log", "finish"}
    folder.log(1, {"reward": 1.0})
    folder.log(2, {"reward": 1.0})
    folder.close()
    assert [call[0] for call in package.calls[-3:]] == ["add_scalar", "add_scalar", "close"]
    assert [record["step"] for record in folder.metrics()] == [1, 2]
    (record,) = caplog.records
    assert record.getMessage() == (
        "trackio is not told everything: OSError: no network (metrics.jsonl is)"
    )


def test_one_that_cannot_be_started_is_an_error(tmp_path, package):
    package.fails = {"init"}
    with pytest.raises(ConfigError, match="report_to: wandb cannot be started: OSError: no netw"):
        folder_of(tmp_path, "wandb")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_named(name, monkeypatch):
    monkeypatch.setattr("r1train.report.trackers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"{name} is not installed: pip install {name}"):
        check_trackers((name,))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(
        ConfigError, match=r"report_to.*'mlflow'.*'tensorboard', 'trackio', 'wandb'"
    ):
        Config(report_to=("mlflow",))


def test_nothing_is_imported_unasked():
    text = "import sys, r1train.run.folder; print([n for n in sys.modules if 'tensorboard' in n])"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
