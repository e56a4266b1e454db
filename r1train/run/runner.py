"""A run: the stages of a recipe in order, each in its folder, and what is said at the end."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from r1train.config.recipe import load_config
from r1train.config.schema import ConfigError
from r1train.config.sections import Config, ModelConfig
from r1train.data.demonstrations import check_solutions
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import opens_think, render_prompt
from r1train.engine.builtin import Engine
from r1train.model.limits import check_problems
from r1train.model.load import load_model
from r1train.report.console import CONSOLE, show_before_after
from r1train.report.evaluation import EvalResult
from r1train.rewards.base import RewardPool
from r1train.run.artifacts import FILE, Finished, Plan, plan
from r1train.run.checkpoint import CheckpointStore
from r1train.run.choice import PLAN, Choice, choose, described, take_up
from r1train.run.export import save_checkpoint
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals, stopping_signals
from r1train.run.trainer import Trainer, log_evaluation
from r1train.seeds import derive_seed, deterministic
from r1train.stages import check_stages, kind_of
from r1train.stages.base import Context, TrainStage
from r1train.stages.evaluate import evaluate


def run(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """The stages of `config` that are not finished yet; returns what summary.json holds.

    A run is in `output_dir/name`; where the folder of another is there, in `name-2` and so on.
    Finished stages with the same inputs are taken from those folders. With `resume` a run with the
    same inputs that was broken off is gone on with, where there is one.

    After Ctrl-C, SIGTERM or an error the folder has a checkpoint, plots and a summary that says so
    all the same, and the exception goes on to the caller. While they are written, a signal waits.
    """
    check_stages(config)
    plans = plan(config)
    return _start(config, plans, choose(config, plans, resume=resume))


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with the run in `folder`, from its last checkpoint that is whole.

    What comes is what would have come without a break: bit for bit on a CPU. Raises ConfigError
    where there is no such run, or where its data or options are no longer what they were.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.toml")
    config = load_config(folder / "config.toml")
    check_stages(config)
    plans = plan(config)
    choice = take_up(folder, plans)
    if len(choice.done) == len(plans):
        choice.notes.append(f"{folder}: every stage is finished")
    return _start(config, plans, choice)


def _start(config: Config, plans: list[Plan], choice: Choice) -> dict[str, Any]:
    for note in choice.notes:
        CONSOLE.print(note, soft_wrap=True)
    if choice.folder is not None and len(choice.done) == len(plans):
        summary: dict[str, Any] = json.loads((choice.folder / "summary.json").read_text())
        return summary
    # Deterministic before CUDA starts: it is configured there.
    with stopping_signals() as signals, deterministic(), ExitStack() as closing:
        transformers_logging.disable_progress_bar()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        work = Run(config, plans, choice, signals, closing)
        with signals.held():
            try:
                with signals.released():  # in here alone: so no signal comes between the two
                    work.stages()
            except BaseException as error:
                work.finish(stopped_by=error)
                raise
            return work.finish()


class Run:
    """What the stages of a run share: problems, rewards, the folder."""

    def __init__(
        self,
        config: Config,
        plans: list[Plan],
        choice: Choice,
        signals: Signals,
        closing: ExitStack,
    ) -> None:
        self.config, self.plans, self.signals, self.closing = config, plans, signals, closing
        self.done = dict(choice.done)
        self._problems: dict[str, tuple[ProblemSet, ProblemSet]] = {}
        self._rewards: dict[str, RewardPool] = {}
        for one in plans:  # what is wrong with any stage is said before the first is trained
            if one.name not in self.done:
                train, _ = self.problems(one)
                if one.stage.kind == "sft":
                    check_solutions(train)
        self.trainer: Trainer | None = None
        self.checkpoint: Path | None = None
        self.parameters: int | None = None
        self.evaluations: dict[str, list[EvalResult]] = {}
        self.warnings: list[str] = []
        self.started = time.perf_counter()
        waiting = next(one for one in plans if one.name not in self.done)
        loaded = self.load(waiting)  # before there is a folder: what is wrong leaves none behind
        self.folder = RunFolder(choice.folder) if choice.folder else RunFolder.create(config)
        closing.enter_context(self.folder.locked())
        if choice.folder is None:
            self.folder.write(PLAN, described(plans))
        self._loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {
            waiting.name: loaded
        }
        train, heldout = self.problems(waiting)
        CONSOLE.print(
            f"{config.name}: {loaded[0].num_parameters() / 1e6:.1f}M parameters on "
            f"{loaded[0].device}, seed {config.seed}, {len(train)} problems and {len(heldout)} "
            f"held out, in {self.folder.path}",
            soft_wrap=True,
        )

    def stages(self) -> None:
        """Every stage in order; of one that is finished, what it left is taken."""
        sizes: dict[str, int] = {}
        for one in self.plans:
            if one.name in self.done:
                self._take(one, self.done[one.name])
            else:
                self._run(one, sizes)
            sizes = self.done[one.name].record["log"]

    def _take(self, one: Plan, stage: Finished) -> None:
        """A finished stage, of this folder or of another; its lines are in the logs of both."""
        if stage.folder.parent.resolve() != self.folder.path.resolve():
            path = os.path.relpath(stage.artifact.path, self.folder.path / one.name)
            self.folder.copy_logs(stage.folder.parent, one.name)
            record = {**stage.record, "path": path, "log": self.folder.sizes()}
            stage = self._write_record(one, record)
        self.done[one.name] = stage
        self.evaluations[one.name] = [
            EvalResult.from_state(result) for result in stage.record["evaluations"]
        ]
        self.warnings += stage.record["warnings"]
        if stage.artifact.kind == "checkpoint":
            self.checkpoint = self.folder.link(stage.artifact.path)

    def _run(self, one: Plan, sizes: dict[str, int]) -> None:
        """A stage to its end; `sizes` are those of the logs where it begins."""
        context = self.context(one)
        stage = kind_of(one.stage.kind)(context)
        record: dict[str, Any] = {"kind": stage.leaves, "evaluated": one.evaluated}
        if isinstance(stage, TrainStage):
            trainer = self._train(one, stage, sizes)
            self.evaluations[one.name] = trainer.evaluations
            seconds, warnings = trainer.elapsed(), [*trainer.stall.said.values()]
            with self.signals.held():
                path = self.folder.path / one.name / "checkpoint"
                save_checkpoint(context.model, context.tokenizer, path)
                self.checkpoint, self.trainer = self.folder.link(path), None
                self.warnings += warnings
                self._record(one, record | {"path": path.name}, seconds, warnings)
            return
        self.folder.cut(sizes)
        started = time.perf_counter()
        path = stage.run(self.folder.path / one.name)
        with self.signals.held():
            for result in stage.results:
                log_evaluation(self.folder, one.name, 0, result)
            self.evaluations[one.name] = stage.results
            seconds = time.perf_counter() - started
            self._record(one, record | {"path": path.name, "evaluated": True}, seconds, [])

    def _train(self, one: Plan, stage: TrainStage, sizes: dict[str, int]) -> Trainer:
        context = stage.context
        seed = derive_seed(self.config.seed, "eval")  # of the run: all evaluations compare

        def evaluator() -> EvalResult:
            return evaluate(
                context.engine,
                context.tokenizer,
                context.heldout,
                context.rewards,
                context.config.eval,
                context.config.task.prompt_template,
                seed,
            )

        store = CheckpointStore(self.folder.path / one.name, self.config.keep_checkpoints)
        self.trainer = trainer = Trainer(
            stage,
            one.name,
            self.folder,
            store,
            self.signals,
            evaluator,
            ends_evaluated=one.evaluated,
        )
        if not trainer.restore():
            self.folder.cut(sizes)
        trainer.fit()
        return trainer

    def _record(
        self, one: Plan, record: dict[str, Any], seconds: float, warnings: list[str]
    ) -> None:
        """The stage is finished: from here on it is not repeated."""
        evaluations = [result.state_dict() for result in self.evaluations[one.name]]
        self.done[one.name] = self._write_record(
            one,
            {
                **record,
                "evaluations": evaluations,
                "warnings": warnings,
                "seconds": seconds,
                "log": self.folder.sizes(),
            },
        )

    def _write_record(self, one: Plan, record: dict[str, Any]) -> Finished:
        record |= {"inputs_hash": one.inputs_hash, "inputs": one.inputs}
        (self.folder.path / one.name).mkdir(exist_ok=True)
        self.folder.write(f"{one.name}/{FILE}", json.dumps(record, indent=1) + "\n")
        return Finished(self.folder.path / one.name, record)

    def problems(self, one: Plan) -> tuple[ProblemSet, ProblemSet]:
        """Training and held-out problems, the same for stages of one task."""
        key = repr(one.config.task)
        if key not in self._problems:
            self._problems[key] = load_problems(one.config.task, self.config.seed)
        return self._problems[key]

    def load(self, one: Plan) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that a stage starts from, and its tokenizer; every problem fits it."""
        config, (train, heldout) = one.config, self.problems(one)
        if isinstance(one.init, Plan):
            path = str(self.done[one.init.name].artifact.path)
            config = replace(config, model=ModelConfig(path=path))
        elif one.init is not None:
            preset = one.init.removeprefix("preset:")
            chosen = {"path": one.init} if preset == one.init else {"preset": preset}
            config = replace(config, model=ModelConfig(**chosen))
        template = config.task.prompt_template
        model, tokenizer = load_model(config, (render_prompt(p.prompt, template) for p in train))
        length = config.rollout.max_completion_length
        check_problems(model, tokenizer, train, template, length)
        length = config.eval.max_completion_length or length
        check_problems(model, tokenizer, heldout[: config.eval.limit], template, length)
        self.rewards(one, tokenizer)  # a verifier that credits nonsense is refused
        self.parameters = model.num_parameters()
        return model, tokenizer

    def rewards(self, one: Plan, tokenizer: PreTrainedTokenizerBase) -> RewardPool:
        """Verifier processes, the same for stages of one task and the same rewards."""
        train, template = self.problems(one)[0], one.config.task.prompt_template
        think_opened = opens_think(render_prompt(train[0].prompt, template, tokenizer))
        key = repr((one.config.task, one.config.rewards, think_opened))
        if key not in self._rewards:
            pool = RewardPool(one.config.rewards, train, think_opened=think_opened)
            self._rewards[key] = self.closing.enter_context(pool)
        return self._rewards[key]

    def context(self, one: Plan) -> Context:
        """What the stage works with."""
        loaded = self._loaded.pop(one.name, None)
        model, tokenizer = loaded if loaded is not None else self.load(one)
        train, heldout = self.problems(one)
        return Context(
            config=one.config,
            seed=one.seed,
            model=model,
            tokenizer=tokenizer,
            engine=Engine(model, tokenizer, one.config.rollout.batch_size),
            rewards=self.rewards(one, tokenizer),
            train=train,
            heldout=heldout,
        )

    def finish(self, *, stopped_by: BaseException | None = None) -> dict[str, Any]:
        """Checkpoint, plots, summary and the table of before and after.

        What fails of them keeps none of the others from being written, and the summary says so.
        Then the first failure is raised, or logged where the run ends by `stopped_by` anyway.
        """
        failures: list[BaseException] = []
        plots: list[Path] = []
        warnings = list(self.warnings)
        if self.trainer is not None:  # it was broken off
            self.evaluations[self.trainer.name] = self.trainer.evaluations
            warnings += self.trainer.stall.said.values()
            self.checkpoint = None
            with collected(failures):
                self.checkpoint = self.folder.link(self.trainer.save())
        with collected(failures):
            plots = self.folder.plot()
        summary: dict[str, Any] = {
            "name": self.config.name,
            "seed": self.config.seed,
            "folder": str(self.folder.path),
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "parameters": self.parameters,
            "seconds": time.perf_counter() - self.started,
            "stages": {name: stage.record["seconds"] for name, stage in self.done.items()},
            "interrupted": False,
        }
        if warnings := [*warnings, *map(named, failures)]:
            summary["warnings"] = warnings
        evaluated = [results for results in self.evaluations.values() if results]
        ends = {"before": evaluated[-1][0], "after": evaluated[-1][-1]} if evaluated else {}
        if ends:
            summary["pass@1"] = {when: result.pass_at_1 for when, result in ends.items()}
            summary["evaluation"] = {when: result.as_dict() for when, result in ends.items()}
        with collected(failures):
            self._summarize(summary, [stopped_by, self.signals.waiting, *failures])
            if self.signals.waiting:  # it may have come while the summary was written
                self._summarize(summary, [stopped_by, self.signals.waiting, *failures])
        with collected(failures):  # last: a terminal that has gone, or a closed pipe, costs nothing
            if ends:
                show_before_after(ends["before"], ends["after"], plots)
            path = self.folder.path / "summary.json"
            CONSOLE.print(f"{'interrupted; ' * summary['interrupted']}{path}", soft_wrap=True)
            if summary["interrupted"] and self.checkpoint:
                CONSOLE.print(f"to go on: r1train resume {self.folder.path}", soft_wrap=True)
        for failure in failures if stopped_by else failures[1:]:
            message = "%s is not complete: %s"
            logging.getLogger("r1train").error(message, self.folder.path, named(failure))
        if failures and stopped_by is None:
            raise failures[0]
        return summary

    def _summarize(self, summary: dict[str, Any], reasons: list[BaseException | None]) -> None:
        """Writes `summary`, with the first of the `reasons` for which the run ended, if any."""
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            summary |= {"interrupted": True, "stopped_by": named(reason)}
        self.folder.write_summary(summary)


@contextmanager
def collected(failures: list[BaseException]) -> Iterator[None]:
    """Within it an exception is appended to `failures` and goes no further."""
    try:
        yield
    except BaseException as error:
        failures.append(error)


def named(error: BaseException) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
