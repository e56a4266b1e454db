"""A recipe from several seeds: each as if it were alone, and what they show together."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from r1train.config.recipe import documented, load_config
from r1train.config.schema import ConfigError, RunError
from r1train.report import trackers
from r1train.run import runner, study
from r1train.run.artifacts import Finished
from r1train.run.figures import figure
from r1train.run.folder import RunFolder
from r1train.run.runner import run
from r1train.run.worker import run_stage
from tests.r1train.kills import left

SEEDS = (
    "seeds=[3, 5]",
    "processes=2",
    "stages=[{kind='sft', name='base', evaluate=true}, {kind='evaluate', name='exam'}]",
    "findings=[{title='It learns', paper='so', left='base: pass@1', right='base: first pass@1'},"
    "{title='Loss falls', left='base: early loss', right='base: training loss', scale='number'},"
    "{title='Nothing', left='exam: pass@l', right='0.5'}]",
    "result=base",
)


def test_seeds_are_runs_and_findings_compare_them(config, tmp_path, capsys):
    summary = study.run(config(*SEEDS))
    folder = tmp_path / "runs" / "tiny"
    said = capsys.readouterr().out
    assert "seed-3 · base: finished in" in said
    assert re.search(
        r"'exam: pass@l': stage 'exam' in \S+seed-5 has no such figure: .*pass@1", said
    )
    for name in ("seed-3", "seed-5"):
        assert (folder / name / "checkpoint").resolve().parent.name == "base"
    assert "It learns" in said
    loss = summary["findings"][1]
    assert all(first > last for first, last in loss["values"])
    assert len(loss["values"]) == 2
    assert "Loss falls" in (folder / "findings.md").read_text()

    run(config(SEEDS[2], "seed=5", "name=alone", "result=base"))
    assert left(folder / "seed-5") == left(tmp_path / "runs" / "alone")

    study.run(config(*SEEDS))
    assert "begins" not in capsys.readouterr().out  # every stage is finished
    shutil.rmtree(folder / "seed-3" / "base")
    (folder / "seed-5" / "exam" / "artifact.json").unlink()
    study.resume(folder)
    said = capsys.readouterr().out
    assert "seed-3 · base: begins" in said
    assert "seed-5 · exam: begins" in said
    assert "seed-5 · base" not in said
    assert left(folder / "seed-5") == left(tmp_path / "runs" / "alone")
    assert json.loads((folder / "summary.json").read_text())["findings"][1] == loss


def test_a_study_with_trackers_is_found_again_and_its_seeds_alone_track(
    config, tmp_path, monkeypatch
):
    opened = []
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr(runner, "check_trackers", lambda names: None)
    monkeypatch.setitem(trackers.TRACKERS, "trackio", partial(Counted, opened))
    options = config(*SEEDS[:2], "stages=[{kind='evaluate', name='exam'}]", "report_to=['trackio']")
    study.run(options)
    study.run(options)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert {folder.name for folder in opened} == {"seed-3", "seed-5"}


def test_a_seed_that_fails_is_no_interruption_of_the_others(config, tmp_path, monkeypatch, capsys):
    class Here:
        """In the place of a schedule: one stage fails, and this process does the others."""

        def __init__(self, needs, started, ended):
            self.needs, self.ended = needs, ended

        def run(self, processes, threads, signals, kept_open):
            for job in self.needs:
                fails = job.folder.name == "seed-3"
                self.ended(job, "not able" if fails else run_stage(job, signals))

    monkeypatch.setattr(runner, "Schedule", Here)
    options = config(*SEEDS[:2], "stages=[{kind='evaluate', name='exam'}]")
    for _ in range(2):
        with pytest.raises(RunError, match=r"^seed-3 · exam: not able$"):
            study.run(options)
    (folder,) = (tmp_path / "runs").iterdir()
    said = capsys.readouterr().out
    assert said.count(f"{folder}/seed-3 failed (RunError: exam: not able): it is gone on with") == 1
    assert said.count(f"to try again what failed: r1train resume {folder}\n") == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["interrupted"]
    assert summary["stopped_by"] == "RunError: seed-3 · exam: not able"
    assert summary["runs"]["seed-3"]["stopped_by"] == "RunError: exam: not able"
    assert not any(one["interrupted"] for one in summary["runs"].values())
    with RunFolder(folder).locked(), pytest.raises(RunError):  # it is at work again
        study.run(options)
    assert folder.with_name("tiny-2").is_dir()


def test_what_was_broken_off_is_said_where_all_seeds_begin_anew(
    config, tmp_path, monkeypatch, capsys
):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "in_processes", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study.run(config(*SEEDS[:2], "stages=[{kind='evaluate', name='exam'}]"))
    folder = tmp_path / "runs" / "tiny"
    assert folder.with_name("tiny-2").is_dir()
    reason = f"{folder} is at work, or was broken off; to go on with it: r1train resume {folder}\n"
    assert capsys.readouterr().out.count(reason) == 1


def test_a_figure_of_the_log_is_read_past_a_torn_line(tmp_path):
    lines = [json.dumps({"step": step, "stage": "base", "loss": step}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "sta']))
    stages = {"base": Finished(tmp_path, {"evaluations": []})}
    assert figure("base: training loss", stages).value == 2


class Counted:
    """A tracker that is told and does nothing."""

    id = None

    def __init__(self, opened, config, folder, known):
        opened.append(folder)

    def __getattr__(self, name):
        return lambda *_: None


def test_a_seed_can_be_gone_on_with_by_itself(config):
    own = study.of_seed(config(*SEEDS), 5, Path("x"))
    assert (own.seed, own.seeds, own.name, own.output_dir) == (5, (), "seed-5", "x")


@pytest.mark.parametrize(
    ("finding", "reason"),
    [
        ("left='bas: pass@1', right='0.5'", r"left = 'bas: pass@1': no stage 'bas': did you mean"),
        ("left='0.5', right='base: pass@1'", r'findings.left = \'0.5\': expected "STAGE: FIGURE"'),
    ],
)
def test_a_finding_of_nothing_is_refused_before_anything_is_run(config, finding, reason):
    with pytest.raises(ConfigError, match=reason):
        study.run(config(*SEEDS[:3], f"findings=[{{title='x', {finding}}}]"))


def test_a_study_that_cannot_begin_leaves_no_folder(config, tmp_path):
    with pytest.raises(ConfigError, match=r"stage 'base': .*distinct problems are needed"):
        study.run(config(*SEEDS[:3], "task.train_size=900"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_seeds_are_written_and_read_back(config, tmp_path):
    path = tmp_path / "written.toml"
    path.write_text(documented(config(*SEEDS)))
    assert load_config(path) == config(*SEEDS)
