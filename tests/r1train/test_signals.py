"""Signals that come while a run is saved: it is saved, then they act."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import nullcontext

import pytest
from transformers import PreTrainedTokenizerBase

import r1train.cli
from r1train.cli import main
from r1train.config.schema import ConfigError
from r1train.report import plots
from r1train.report.console import CONSOLE
from r1train.run import stage_run, supplies
from r1train.run.checkpoint import CheckpointStore
from r1train.run.folder import RunFolder
from r1train.run.runner import Run, resume, run
from r1train.run.signals import Stopped, stopping_signals
from r1train.run.stage_run import StageRun
from r1train.run.trainer import Trainer
from r1train.stages.sft import SFT

TERM, HUP, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def sent_before(monkeypatch):
    """`sent_before(owner, name, *numbers)`: every call of it sends itself these signals first."""

    def patch(owner, name, *numbers):
        true = getattr(owner, name)

        def signalled(*arguments, **options):
            send(*numbers)
            return true(*arguments, **options)

        monkeypatch.setattr(owner, name, signalled)

    return patch


class NoRewards(nullcontext):
    """In the place of those of a run: there is nothing to be judged."""

    weights = ()

    def __init__(self, *_):
        super().__init__(self)


@pytest.fixture
def stages(monkeypatch):
    """A run whose stages do nothing, since they are not what is tested: `stages(raises)` ends
    them."""

    def end(error):
        def fit(self):
            self.folder.log(1, {"loss": 1.0}, stage="sft")
            if error is not None:
                raise error

        monkeypatch.setattr(Trainer, "fit", fit)

    monkeypatch.setattr(supplies, "RewardManager", NoRewards)
    end(None)
    return end


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "tiny"


def summary_of(folder):
    """The summary of a run whose folder is whole."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["checkpoint"] == str(folder / "checkpoint")
    assert (folder / "training.png").is_file()
    load_model_of(folder / "checkpoint")
    assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".previous")]
    return summary


def load_model_of(checkpoint):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(checkpoint)


ENDING = [
    (PreTrainedTokenizerBase, "save_pretrained"),  # within a checkpoint
    (plots, "plot_training"),
    (RunFolder, "plot"),
    (RunFolder, "write_summary"),
    (Run, "finish"),
]
FINISHED = [(stage_run, "save_checkpoint"), (StageRun, "_record"), *ENDING]
BROKEN_OFF = [(Trainer, "save"), (CheckpointStore, "save"), *ENDING]


@pytest.mark.parametrize(("owner", "name"), FINISHED)
@pytest.mark.parametrize("numbers", [(TERM,), (TERM, HUP, TERM)], ids=["one", "several"])
def test_sigterm_in_the_last_save(config, folder, stages, sent_before, capfd, owner, name, numbers):
    sent_before(owner, name, *numbers)
    with pytest.raises(Stopped) as stopped:
        run(config())
    assert stopped.value.code == 143
    assert summary_of(folder)["stopped_by"] == "Stopped: SIGTERM"
    assert summary_of(folder)["interrupted"]
    assert capfd.readouterr().err.count("SIGTERM: the run is saved first, then stopped") == 1
    assert signal.getsignal(TERM) is signal.SIG_DFL
    assert signal.getsignal(INT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "raised", "said"),
    [(HUP, Stopped, "Stopped: SIGHUP"), (INT, KeyboardInterrupt, "KeyboardInterrupt")],
)
def test_other_signals_in_the_last_save(config, folder, stages, sent_before, number, raised, said):
    sent_before(stage_run, "save_checkpoint", number)
    with pytest.raises(raised):
        run(config())
    assert summary_of(folder)["stopped_by"] == said


@pytest.mark.parametrize(("owner", "name"), BROKEN_OFF)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ArithmeticError("fire"), "ArithmeticError: fire"),
    ],
    ids=["ctrl_c", "error"],
)
def test_sigterm_while_what_another_cause_leaves_is_saved(
    config, folder, stages, sent_before, owner, name, error, said
):
    stages(error)
    sent_before(owner, name, TERM)
    with pytest.raises(Stopped) as stopped:
        run(config())
    assert (stopped.value.code, stopped.value.__cause__) == (143, error)
    assert summary_of(folder)["stopped_by"] == said


@pytest.mark.parametrize("numbers", [(TERM,), (HUP,), (INT,)])
def test_what_stops_a_run_is_not_disturbed_by_a_second_signal(
    config, folder, stages, sent_before, numbers
):
    stages(Stopped(TERM))
    sent_before(CheckpointStore, "save", *numbers)
    with pytest.raises(Stopped) as stopped:
        run(config())
    assert stopped.value.code == 143
    assert summary_of(folder)["stopped_by"] == "Stopped: SIGTERM"


def test_ctrl_c_while_ctrl_c_is_saved_waits_once(config, folder, stages, sent_before):
    stages(KeyboardInterrupt())
    sent_before(CheckpointStore, "save", INT)
    with pytest.raises(KeyboardInterrupt):
        run(config())
    assert summary_of(folder)["stopped_by"] == "KeyboardInterrupt"


def test_a_second_ctrl_c_breaks_off_a_save_and_leaves_a_summary(
    config, folder, stages, sent_before
):
    stages(ArithmeticError("fire"))
    sent_before(CheckpointStore, "save", INT, INT)
    with pytest.raises(KeyboardInterrupt):
        run(config())
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["checkpoint"], summary["interrupted"]) == (None, True)


def full(*_, **__):
    raise ConfigError("the disk is full")


def test_what_fails_at_the_end_keeps_nothing_else_from_being_written(
    config, folder, stages, monkeypatch, caplog
):
    monkeypatch.setattr(RunFolder, "plot", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        run(config())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "ConfigError: the disk is full"
    assert summary["warnings"] == ["ConfigError: the disk is full"]
    assert (folder / "checkpoint" / "config.json").exists()
    assert not (folder / "training.png").exists()
    assert caplog.messages == []  # it is raised: once is enough


def test_a_model_that_cannot_be_written_ends_the_run(config, folder, stages, monkeypatch):
    monkeypatch.setattr(stage_run, "save_checkpoint", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        run(config())
    assert summary_of(folder)["stopped_by"] == "ConfigError: the disk is full"
    assert not (folder / "sft" / "artifact.json").exists()  # it is not finished


def test_a_failing_save_does_not_hide_why_a_run_ended(config, folder, stages, monkeypatch, caplog):
    stages(ArithmeticError("fire"))
    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.raises(ArithmeticError, match="fire"):
        run(config())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "ArithmeticError: fire"
    assert caplog.messages == [f"{folder} is not complete: ConfigError: the disk is full"]


def test_a_failing_save_and_sigterm(config, folder, stages, monkeypatch, sent_before):
    stages(ArithmeticError("fire"))
    monkeypatch.setattr(CheckpointStore, "save", full)
    sent_before(CheckpointStore, "save", TERM)
    with pytest.raises(Stopped) as stopped:
        run(config())
    assert isinstance(stopped.value.__cause__, ArithmeticError)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "ArithmeticError: fire"
    assert summary["warnings"] == ["ConfigError: the disk is full"]


def test_a_terminal_that_has_gone_costs_nothing(config, folder, stages, monkeypatch):
    def gone(*_, **__):
        raise OSError(5, "Input/output error")

    def fit(self):
        self.folder.log(1, {"loss": 1.0}, stage="sft")
        monkeypatch.setattr(CONSOLE, "print", gone)
        raise Stopped(HUP)

    monkeypatch.setattr(Trainer, "fit", fit)
    with pytest.raises(Stopped) as stopped:
        run(config())
    assert stopped.value.code == 129
    assert summary_of(folder)["stopped_by"] == "Stopped: SIGHUP"


def test_sigterm_in_a_periodic_save_acts_when_it_is_whole(config, folder, monkeypatch, sent_before):
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: None)
    sent_before(PreTrainedTokenizerBase, "save_pretrained", TERM)
    with pytest.raises(Stopped):
        run(config('stages=["grpo"]', "grpo.save_steps=1"))
    assert summary_of(folder)["stopped_by"] == "Stopped: SIGTERM"
    load_model_of(folder / "grpo" / "checkpoint-1")
    assert not (folder / "grpo" / "checkpoint-2").exists()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == [1]


def test_sigterm_while_a_checkpoint_is_read_leaves_it(config, folder, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: None)
    options = config('stages=["sft"]')
    for owner, name in ((SFT, "prepare"), (Trainer, "load_state_dict")):
        true = getattr(owner, name)

        def stops(self, *state, true=true):
            if state or self.step == 2:
                send(TERM)
            return true(self, *state)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stops)
            with pytest.raises(Stopped):
                resume(folder) if folder.exists() else run(options)
        assert [path.name for path in (folder / "sft").glob("*/")] == ["checkpoint-2"]
    resume(folder)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == [1, 2, 3]


def test_sigterm_in_the_last_evaluation(config, folder, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: self.stage.step and send(TERM))
    with pytest.raises(Stopped):
        run(config('stages=["sft"]', "sft.max_steps=1"))
    assert summary_of(folder)["stopped_by"] == "Stopped: SIGTERM"


def test_the_status_of_the_command(config, folder, stages, sent_before, monkeypatch, capsys):
    stages(ArithmeticError("fire"))
    sent_before(CheckpointStore, "save", TERM)
    monkeypatch.setattr(r1train.cli, "_train_settings", lambda _: config())
    assert main(["run"]) == 143
    expected = "r1train: stopped by SIGTERM, after ArithmeticError: fire\n"
    assert capsys.readouterr().err.endswith(expected)


def test_what_waits_acts_when_the_outermost_hold_ends():
    done = []

    def hold_twice():
        with stopping_signals() as signals, signals.held():
            with signals.held():
                send(TERM)
                done.append("inner")
            done.append("outer")

    with pytest.raises(Stopped):
        hold_twice()
    assert done == ["inner", "outer"]


def test_what_has_waited_acts_where_signals_are_released():
    with stopping_signals() as signals, signals.held():
        send(TERM)
        with pytest.raises(Stopped), signals.released():
            pytest.fail("a signal has waited")
        assert signals.waiting is None
        send(INT)  # held again
        assert isinstance(signals.waiting, KeyboardInterrupt)
        signals.waiting = None


def test_a_signal_that_was_swallowed_can_be_sent_again():
    """As by a destructor, in which Python ignores exceptions."""
    with stopping_signals():
        for _ in range(2):
            with pytest.raises(Stopped):
                send(TERM)


def test_what_is_handled_already_stays_so():
    came = []
    before = signal.signal(TERM, lambda number, _: came.append(number))
    try:
        with stopping_signals() as signals, signals.held():
            send(TERM)
            assert came == [TERM]
    finally:
        signal.signal(TERM, before)


def test_a_thread_has_no_handlers():
    passed = []

    def work():
        with stopping_signals() as signals, signals.held():
            passed.append(signal.getsignal(TERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed == [signal.SIG_DFL]
