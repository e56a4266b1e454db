import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.report.console import ProgressBar, show_before_after, show_completions, show_evaluation
from r1train.run.folder import RunFolder
from r1train.stages.evaluate import EvalResult

PNG = b"\x89PNG"


@pytest.fixture
def config(tmp_path):
    return Config(name="demo", output_dir=str(tmp_path / "runs"))


@pytest.fixture
def console():
    return Console(width=80, record=True, force_terminal=False, file=open("/dev/null", "w"))


def result(share):
    return EvalResult(share, (0.2, 0.9), share, (0.1, 1.0), 4, 256, 256, 20.0, 0.0, 1.0, 0, 0, ())


def test_a_run_folder_never_overwrites_another(config):
    first, second = RunFolder.create(config), RunFolder.create(config)
    assert (first.path.name, second.path.name) == ("demo", "demo-2")
    assert load_config(second.path / "config.toml") == config


def test_metrics_are_on_disk_at_once(config):
    run = RunFolder.create(config)
    run.log(0, {"loss": 1.5}, stage="sft")
    run.log(3, {"reward": math.nan, "kl": 0.0})
    logs = [run.path / stage / "metrics.jsonl" for stage in ("grpo", "sft")]
    assert [json.loads(log.read_text()) for log in logs] == run.metrics()
    assert run.metrics() == [
        {"step": 3, "stage": "grpo", "reward": None, "kl": 0.0},
        {"step": 0, "stage": "sft", "loss": 1.5},
    ]


def test_samples_keep_any_text(config):
    run = RunFolder.create(config)
    run.log_samples(1, [{"completion": "a\nb\u2028é\ud800"}, {"completion": ""}])
    lines = (run.path / "grpo" / "samples.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 3
    assert json.loads(lines[0])["completion"].startswith("a\nb")


def test_the_summary_is_replaced_as_a_whole(config):
    run = RunFolder.create(config)
    for seconds in (1.0, 2.0):
        path = run.write_summary({"seconds": seconds, "pass@1": {"before": math.inf}})
    assert json.loads(path.read_text()) == {"seconds": 2.0, "pass@1": {"before": None}}
    names = {"config.toml", "started.json", "summary.json"}
    assert {p.name for p in run.path.iterdir()} == names


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 3, "stage": "gr', b'{"step": 3, "x": "\xc3', b"\0\0\0", b"[1]\n", b'{"a": 1}\n'],
)
def test_lines_that_a_crash_has_torn_are_read_past(config, torn):
    run = RunFolder.create(config)
    run.log(1, {"loss": 2.0})
    run.log(2, {"note": "a\u2028b"})
    with open(run.path / "grpo" / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert [record["step"] for record in run.metrics()] == [1, 2]


def test_a_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/runs"):
        with pytest.raises(ConfigError, match=r"output_dir = .*cannot be made: Not a directory"):
            RunFolder.create(replace(config, output_dir=str(tmp_path / place)))
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot be made: File exists"):
        RunFolder.create(replace(config, output_dir=str(tmp_path / "dangling")))
    run = RunFolder.create(config)
    (run.path / "grpo").mkdir()
    (run.path / "grpo" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be written: No space left"):
        run.log(1, {"loss": 2.0})


def test_plots_draw_what_there_is(config):
    run = RunFolder.create(config)
    assert run.plot() == []
    run.log(0, {"loss": 2.0}, stage="sft")
    assert [path.name for path in run.plot()] == ["training.png"]
    for step in range(30):
        run.log(step, {"rewards/accuracy": step / 30, "entropy": 1.0, "seconds/rollout": 0.5})
    run.log(30, {"eval/pass@1": 0.5, "eval/pass@1_ci": [0.4, 0.6]})
    plots = run.plot()
    assert [path.name for path in plots] == ["reward.png", "training.png"]
    assert all(path.read_bytes().startswith(PNG) for path in plots)


def test_rewards_beyond_one_have_a_chart_of_their_own(monkeypatch):
    from r1train.report import plots

    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    steps = [{"rewards/format": 0.5, "rewards/format/std": 9.0}, {"rewards/mine": None}]
    records = [{"stage": "grpo", "step": i, **figures} for i, figures in enumerate(steps)]
    plots.plot_reward(records, Path("unused"))
    plots.plot_reward(
        [*records, {"stage": "grpo", "step": 3, "rewards/mine": -40.0}], Path("unused")
    )
    labels = [[line.get_label() for a in f.axes for line in a.get_lines()] for f in drawn]
    own = "mine reward, training"
    assert labels == [["format reward, training"], ["format reward, training", own]]
    assert [len(figure.axes) for figure in drawn] == [1, 2]
    assert len({line.get_color() for axes in drawn[1].axes for line in axes.get_lines()}) == 2


def test_panels_follow_their_data():
    from r1train.report.plots import _names

    records = [{"seconds/rollout": 1.0, "kl": 0.0}, {"seconds/update": 2.0, "kl": None}]
    assert _names(records, ("seconds/*", "kl")) == ["seconds/rollout", "seconds/update"]
    failed = [{"rewards/accuracy/errors": 1, "rewards/accuracy": 1.0, "rewards/mine/errors": 2}]
    errors = ["rewards/accuracy/errors", "rewards/mine/errors"]
    assert _names(failed, ("rewards/*/errors",)) == errors


def test_completions_fit_80_columns_and_cannot_style_the_terminal(console):
    completions = ["<think>1</think><answer>2</answer>", "[red]x[/red]\x1b[31m" + "long " * 200]
    show_completions(
        7, ["Q?", "Q?"], completions, {"accuracy": [1.0, 0.0], "total": [2.0, 0.0]}, console
    )
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("Q?") == 1  # two completions of one prompt
    assert "<answer>2</answer>" in text
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "…" in text


def test_a_reward_that_does_not_apply_is_a_dash(console):
    show_completions(1, ["Q?"], ["a"], {"mine": [None], "format": [0.0]}, console)
    assert "–" in console.export_text()


def test_further_rewards_are_shown_with_the_evaluation(console):
    before, after = (replace(result(0.5), rewards={"mine": mean}) for mean in (-3.0, 1.5))
    show_before_after(before, after, [], console)
    text = console.export_text()
    assert re.search(r"mine .* -3 .* 1\.5 .* \+4\.5", text)


def test_before_and_after(console, tmp_path):
    show_before_after(result(0.25), result(0.875), [tmp_path / "reward.png"], console)
    text = console.export_text()
    for figure in ("25.0%", "87.5%", "+62.5", "cons@4", "256 problems", "reward.png"):
        assert figure in text


def test_evaluation(console):
    show_evaluation(result(0.5), console)
    assert "50.0% (20.0% – 90.0%)" in console.export_text()


def test_progress_without_a_terminal_is_a_few_lines(console):
    with ProgressBar("grpo", 100, console) as bar:
        for _ in range(100):
            bar.advance({"reward": 1.25})
    lines = console.export_text().splitlines()
    assert len(lines) == 20
    assert lines[0] == "grpo 5/100 · reward 1.25"
