"""Stages of a run in several processes: the same as one after the other."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from r1train.config.schema import ConfigError, RunError
from r1train.run import schedule, supplies
from r1train.run.artifacts import finished
from r1train.run.runner import Run, run
from r1train.run.schedule import Schedule, Worker, longest_first
from r1train.run.signals import Stopped, stopping_signals
from r1train.run.worker import Job
from tests.r1train.kills import left

STAGES = (
    "stages=[{kind='sft', name='base', evaluate=true},"
    "{kind='sft', name='one', sft={max_steps=2}, evaluate=false},"
    "{kind='rl', name='two', init='base', grpo={max_steps=2, eval_steps=0}, evaluate=false},"
    "{kind='evaluate', name='exam', init='one'}]"
)


def test_processes_leave_what_one_leaves(config, tmp_path, capsys):
    alone = run(config(STAGES, "name=alone"))
    several = run(config(STAGES, "name=several", "processes=2"))
    said = capsys.readouterr().out
    assert "two: begins" in said
    assert "base: finished in" in said
    assert left(tmp_path / "runs" / "alone") == left(tmp_path / "runs" / "several")
    assert alone["pass@1"] == several["pass@1"]
    assert several["parameters"] == alone["parameters"]


def test_what_needs_no_failed_stage_goes_on(config, tmp_path, capsys):
    diverges = "{kind='sft', name='one', sft={learning_rate=1e30}, evaluate=false}"
    stages = STAGES.replace("{kind='sft', name='one', sft={max_steps=2}, evaluate=false}", diverges)
    with pytest.raises(RunError, match=r"^one: the gradient"):
        run(config(stages, "processes=2"))
    folder = tmp_path / "runs" / "tiny"
    assert finished(folder).keys() == {"base", "two"}
    assert not json.loads((folder / "summary.json").read_text())["interrupted"]
    assert f"to try again what failed: r1train resume {folder}" in capsys.readouterr().out


def test_a_fault_of_the_program_is_in_the_log_of_the_stage(config, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('FAULT'):\n"
        "    import r1train.stages.sft as sft\n"
        "    sft.SFT.update = lambda self: [][1]\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FAULT", "1")
    with pytest.raises(RunError, match=r"^sft: its process ended with status 1; .*sft/log\.txt$"):
        run(config("stages=['sft']", "processes=2"))
    log = (tmp_path / "runs" / "tiny" / "sft" / "log.txt").read_text()
    assert "IndexError: list index out of range" in log


@pytest.mark.slow
def test_a_stop_saves_what_is_at_work(config, tmp_path):
    path = tmp_path / "tiny.toml"
    command = [sys.executable, "-m", "r1train", "run", str(path), f"output_dir={tmp_path}/runs"]
    options = [STAGES, "processes=2", "sft.max_steps=400", "stages.one.sft.max_steps=400"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "tiny" / "base" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    (saved,) = (tmp_path / "runs" / "tiny" / "base").glob("checkpoint-*")
    assert (saved / "state" / "manifest.json").exists()


def test_the_longest_chains_come_first():
    needs = {"a": [], "b": [], "c": ["b"], "d": ["c"], "e": ["a"]}
    assert longest_first(needs) == ["b", "a", "c", "d", "e"]


def test_an_idle_process_that_dies_is_dropped(tmp_path):
    """As by the kernel, where memory is short."""
    job = Job(tmp_path, "none")
    schedule = Schedule({job: []}, print, print)
    with selectors.DefaultSelector() as ready:
        worker = Worker(1, ())
        ready.register(worker.output, selectors.EVENT_READ, worker)
        worker.process.kill()
        ready.select()
        workers = [worker]
        schedule._end(worker, workers, ready)
        assert workers == []
        assert not ready.get_map()
    assert (schedule.waiting, schedule.done) == ([job], set())


def test_what_the_checks_have_started_ends_where_one_fails(config, monkeypatch):
    ended = []
    rewards = ExitStack()
    rewards.callback(ended.append, "rewards")

    def wrong(self, one):
        self.supplies.rewards(one)
        raise ConfigError("wrong")

    monkeypatch.setattr(supplies, "RewardManager", lambda *_: rewards)
    monkeypatch.setattr(Run, "_check", wrong)
    with pytest.raises(ConfigError, match="wrong"):
        run(config("processes=2"))
    assert ended == ["rewards"]


def test_a_second_signal_waits_until_all_stages_are_saved(tmp_path, monkeypatch, capfd):
    saved = []

    class Saving:
        """In the place of a process; while it saves its stage, a signal comes."""

        def __init__(self, *_):
            self.job, (self.output, _) = None, os.pipe()

        def start(self, job):
            self.job = job
            if job.stage == "two":
                os.kill(os.getpid(), signal.SIGTERM)

        def stop(self):
            pass

        def wait(self):
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append(self.job.stage)

    monkeypatch.setattr(schedule, "Worker", Saving)
    needs = {Job(tmp_path, "one"): [], Job(tmp_path, "two"): []}
    with stopping_signals() as signals, pytest.raises(Stopped):
        Schedule(needs, print, print).run(2, 1, signals)
    assert saved == ["one", "two"]
    assert "SIGTERM: the stages at work are saved first, then stopped" in capfd.readouterr().err
