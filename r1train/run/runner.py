"""A run from its configuration: everything is loaded and checked before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from r1train.config.sections import Config
from r1train.data.demonstrations import Demonstrations, RecordedDemonstrations
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import opens_think, render_prompt
from r1train.data.worked_solutions import WorkedSolutions, check_solutions
from r1train.model.limits import fitting_problems, positions
from r1train.model.load import load_model
from r1train.rewards.base import RewardPool
from r1train.run.signals import Signals, stopping_signals
from r1train.run.trainer import Trainer
from r1train.seeds import derive_seed, deterministic


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
    train, heldout = load_problems(config.task, config.seed)
    if "sft" in config.stages and not config.sft.datasets:
        check_solutions(train.sources)
    template = config.task.prompt_template
    model, tokenizer = load_model(config, (render_prompt(p.prompt, template) for p in train))
    longest = config.rollout.max_completion_length
    train = fitting_problems(model, tokenizer, train, template, longest)
    longest, heldout = config.eval.max_completion_length or longest, heldout[: config.eval.limit]
    heldout = fitting_problems(model, tokenizer, heldout, template, longest)
    demonstrations = None
    if "sft" in config.stages:
        demonstrations = _demonstrations(config, model, tokenizer, train)
    think_opened = opens_think(render_prompt(train[0].prompt, template, tokenizer))
    pool = RewardPool(config.rewards, train, think_opened=think_opened)
    with pool as rewards:
        trainer = Trainer(
            config, model, tokenizer, rewards, train, heldout, demonstrations, signals
        )
        with signals.held():
            try:
                with signals.released():  # in here alone: so no signal comes between the two
                    trainer.train_stages()
            except BaseException as error:
                trainer.finish(stopped_by=error)
                raise
            return trainer.finish()


def _demonstrations(
    config: Config,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: ProblemSet,
) -> Demonstrations:
    """What the supervised stage learns from: files, or worked solutions of the problems."""
    seed, task = derive_seed(config.seed, "sft"), config.task
    if config.sft.datasets:
        return RecordedDemonstrations(
            config.sft, task, tokenizer, positions=positions(model), seed=seed
        )
    return WorkedSolutions(train, config.sft, tokenizer, template=task.prompt_template, seed=seed)
