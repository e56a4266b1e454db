"""A run from its configuration: everything is loaded and checked before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from r1train.config.sections import Config
from r1train.data.demonstrations import check_solutions
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import render_prompt
from r1train.model.limits import check_problems
from r1train.model.load import load_model
from r1train.report.trackers import check_trackers
from r1train.rewards.manager import RewardManager
from r1train.run.signals import Signals, stopping_signals
from r1train.run.trainer import Trainer
from r1train.seeds import deterministic


def run(config: Config) -> dict[str, Any]:
    """The stages of `config` in a new run folder; returns what its summary.json holds.

    Held-out problems are evaluated before and after the last stage. After Ctrl-C, SIGTERM or an
    error the folder has a checkpoint, plots and a summary that says so all the same, and the
    exception goes on to the caller. While they are written, a signal waits.
    """
    # Deterministic before CUDA starts: it is configured there.
    with stopping_signals() as signals, deterministic():
        return _run(config, signals)


def _run(config: Config, signals: Signals) -> dict[str, Any]:
    transformers_logging.disable_progress_bar()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_trackers(config.report_to)
    train, heldout = load_problems(config.task, config.seed)
    if "sft" in config.stages:
        check_solutions(train)
    with RewardManager(config.rewards, train) as rewards:
        return _train(config, train, heldout, rewards, signals)


def _train(
    config: Config,
    train: ProblemSet,
    heldout: ProblemSet,
    rewards: RewardManager,
    signals: Signals,
) -> dict[str, Any]:
    template = config.task.prompt_template
    model, tokenizer = load_model(config, (render_prompt(p.prompt, template) for p in train))
    longest = config.rollout.max_completion_length
    check_problems(model, tokenizer, train, template, longest)
    longest = config.eval.max_completion_length or longest
    check_problems(model, tokenizer, heldout[: config.eval.limit], template, longest)
    trainer = Trainer(config, model, tokenizer, rewards, train, heldout, signals)
    with signals.held():
        try:
            with signals.released():  # in here alone: so no signal comes between the two
                trainer.train_stages()
        except BaseException as error:
            trainer.finish(stopped_by=error)
            raise
        return trainer.finish()
