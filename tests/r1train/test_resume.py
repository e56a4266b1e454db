"""k steps, a break, and the rest are the same as all steps at once, bit for bit."""

from __future__ import annotations

import json

import pytest

from r1train.rewards.base import RewardBatch
from r1train.rewards.manager import RewardManager
from r1train.run import runner, trainer
from r1train.run.checkpoint import CheckpointStore
from r1train.run.runner import resume, run
from tests.r1train import kills

# Two updates a rollout, a reference that is replaced, epochs of three problems: nothing that a
# later update depends on is the same at every step.
OPTIONS = (
    *("grpo.num_minibatches=2", "grpo.beta=0.01", "grpo.ref_model_sync_steps=2"),
    *("task.train_size=3", "task.heldout_size=3", "sft.max_steps=2", "grpo.max_steps=4"),
    *(
        "grpo.max_extra_rollouts=1",
        "grpo.save_steps=none",
        "grpo.log_completions_steps=0",
        "eval.k=1",
    ),
)


class Killed(BaseException):
    """What `kill -9` is to the code that it meets, but that the test goes on."""


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every update, rewards that differ, and no plots, which take longer."""
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(runner.RunFolder, "plot", lambda self: [])

    def score(self, samples, also=()):
        rewards = [float(sum(sample.completion.encode()) % 2) for sample in samples]
        names = ("accuracy", "format")
        none = dict.fromkeys(names, 0)
        return RewardBatch(rewards, dict.fromkeys(names, rewards), none, none)

    monkeypatch.setattr(RewardManager, "score", score)


def left(folder):
    """All that a run leaves, and what its summary says, without times."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("seconds", "stages", "folder", "checkpoint"):
        del summary[name]
    return *kills.left(folder), summary


@pytest.fixture
def unbroken(config, often, tmp_path):
    run(config(*OPTIONS, f"output_dir={tmp_path}/unbroken"))
    return left(tmp_path / "unbroken" / "tiny")


def killed_after(monkeypatch, count):
    """Ends the process, as far as the run can tell, when `count` checkpoints were written."""
    save, finish, saved = CheckpointStore.save, runner.Run.finish, []

    def counted(self, *arguments):
        path = save(self, *arguments)
        saved.append(path.name)
        if len(saved) == count:
            raise Killed
        return path

    def unless_killed(self, *, stopped_by=None):
        return {} if isinstance(stopped_by, Killed) else finish(self, stopped_by=stopped_by)

    monkeypatch.setattr(CheckpointStore, "save", counted)
    monkeypatch.setattr(runner.Run, "finish", unless_killed)
    return saved


def test_a_rollout_is_saved_once_where_no_group_was_replaced(config, often, tmp_path, monkeypatch):
    killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        run(config(*OPTIONS, 'stages=["grpo"]'))
    folder = tmp_path / "runs" / "tiny" / "grpo" / "checkpoint-0-1"
    work = json.loads((folder / "state" / "state.json").read_text())["stage"]["work"]
    assert work["rollout"]["finished"]
    assert work["learned"] is None


def test_a_run_that_is_broken_off_again_and_again_ends_the_same(
    config, unbroken, tmp_path, monkeypatch
):
    settings, folder = config(*OPTIONS), tmp_path / "runs" / "tiny"
    places = []
    for start in range(10):
        with monkeypatch.context() as patch:
            saved = killed_after(patch, 3)
            try:
                run(settings) if start == 0 else resume(folder)
            except Killed:
                places.append(saved[-1])
                continue
        break
    assert "checkpoint-0-1" in places  # within a step too
    assert "checkpoint-2" in places  # after an evaluation
    assert left(folder) == unbroken


@pytest.mark.parametrize("ended", [Killed, KeyboardInterrupt])
def test_an_evaluation_that_is_broken_off_comes_again(
    config, unbroken, tmp_path, monkeypatch, ended
):
    settings, folder = config(*OPTIONS), tmp_path / "runs" / "tiny"
    for step in (0, 2, 4):
        with monkeypatch.context() as patch:
            breaks_off_at(patch, step, ended)
            with pytest.raises(ended):
                run(settings) if step == 0 else resume(folder)
    resume(folder)
    assert left(folder) == unbroken


def breaks_off_at(monkeypatch, step, ended):
    """Ends the process in the evaluation of this step, when all has been sampled."""
    killed_after(monkeypatch, 0)
    evaluate = trainer.Trainer.evaluate

    def broken_off(self):
        true = self.evaluator

        def evaluator():
            result = true()
            if self.stage.step == step:
                raise ended
            return result

        self.evaluator = evaluator
        evaluate(self)

    monkeypatch.setattr(trainer.Trainer, "evaluate", broken_off)


def test_what_is_logged_after_a_checkpoint_is_of_later_steps(config, often, tmp_path, monkeypatch):
    """Trackers cannot take back half of a step."""
    logged, saved = [], []
    log, save = runner.RunFolder.log, CheckpointStore.save

    def logs(self, step, *arguments, **options):
        logged.append(step)
        log(self, step, *arguments, **options)

    def saves(self, place, *arguments):
        saved.append((place[0], len(logged)))
        return save(self, place, *arguments)

    monkeypatch.setattr(runner.RunFolder, "log", logs)
    monkeypatch.setattr(CheckpointStore, "save", saves)
    run(config(*OPTIONS, 'stages=["grpo"]'))
    assert logged == [0, 1, 2, 2, 3, 4, 4]
    assert {step for step, _ in saved} == {0, 1, 2, 3, 4}
    assert all(step < later for step, count in saved for later in logged[count:])
