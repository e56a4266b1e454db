"""A run: rollout → reward → update → log → evaluate, and what it leaves in its folder."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.sections import Config, Stage
from r1train.data.encode import decode_completions, encode_prompts
from r1train.data.problems import Problem, ProblemSet
from r1train.engine.base import Request, Rollout, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sync import WeightSync
from r1train.learn.grpo import Learner
from r1train.learn.sft import supervise
from r1train.metrics import Stopwatch, peak_memory_gib
from r1train.report.console import CONSOLE, ProgressBar, show_before_after, show_completions
from r1train.report.evaluation import EvalResult
from r1train.rewards.base import RewardBatch, RewardPool
from r1train.run.checkpoint import save_checkpoint
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals
from r1train.run.stall import Stall
from r1train.seeds import derive_seed
from r1train.stages.evaluate import evaluate

SHOWN = 4  # completions of a prompt in the printed table
PROBED = 2  # prompts by which the engine's weights are checked


class Trainer:
    """One model, its problems and its run folder."""

    def __init__(
        self,
        config: Config,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardPool,
        train: ProblemSet,
        heldout: ProblemSet,
        signals: Signals,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.rewards, self.train, self.heldout = rewards, train, heldout
        self.signals = signals
        self.engine = BuiltinEngine.from_config(model, tokenizer, config.rollout)
        self.folder = RunFolder.create(config)
        self.evaluations: list[EvalResult] = []
        self.stall = Stall()
        self.started = time.perf_counter()
        CONSOLE.print(
            f"{config.name}: {model.num_parameters() / 1e6:.1f}M parameters on {model.device}, "
            f"seed {config.seed}, {len(train)} problems and {len(heldout)} held out, "
            f"in {self.folder.path}",
            soft_wrap=True,
        )

    def train_stages(self) -> None:
        """The stages of the configuration, the last one between two evaluations."""
        for stage in self.config.stages:
            settings, last = getattr(self.config, stage), stage == self.config.stages[-1]
            if last:
                self.evaluate(stage, 0)
            getattr(self, stage)()
            if last:
                self.evaluate(stage, settings.max_steps)

    def sft(self) -> None:
        """The supervised stage."""
        config, template = self.config.sft, self.config.task.prompt_template
        seed = derive_seed(self.config.seed, "sft")
        updates = supervise(
            self.model, self.tokenizer, self.train, config, template=template, seed=seed
        )
        with ProgressBar("sft", config.max_steps) as bar:
            for step, metrics in enumerate(updates, start=1):
                self.folder.log(step, metrics, stage="sft")
                self.stall.observe(step, metrics)
                bar.advance({"loss": metrics["loss"]})

    def grpo(self) -> None:
        """The reinforcement-learning stage."""
        config, rollout_config = self.config.grpo, self.config.rollout
        sampling = Sampling(
            max_new_tokens=rollout_config.max_completion_length,
            temperature=rollout_config.temperature,
            stop=rollout_config.stop,
        )
        template, seed = self.config.task.prompt_template, self.config.seed
        learner = Learner(
            self.model,
            config,
            temperature=sampling.temperature,
            max_completion_length=sampling.max_new_tokens,
            sampling_tolerance=self.engine.sampling_tolerance,
            seed=derive_seed(seed, "minibatches"),
        )
        probe = encode_prompts(self.tokenizer, self.train[:PROBED], template)
        sync = WeightSync(self.engine, self.model, probe)
        with ProgressBar("grpo", config.max_steps) as bar:
            for step in range(1, config.max_steps + 1):
                watch = Stopwatch()
                drawn = draw(self.train, config.prompts_per_step, step, seed)
                problems = [problem for problem in drawn for _ in range(config.num_generations)]
                with watch("rollout"):
                    sync(step)
                    prompts = encode_prompts(self.tokenizer, drawn, template)
                    requests = [
                        Request(
                            prompt, config.num_generations, derive_seed(seed, "rollout", step, i)
                        )
                        for i, prompt in enumerate(prompts)
                    ]
                    rollout = self.engine.generate(requests, sampling)
                with watch("reward"):
                    texts = decode_completions(self.tokenizer, rollout.completion_ids)
                    rewards = self.rewards.score(texts, problems)
                with watch("update"):
                    metrics = learner.step(rollout, rewards.total)
                metrics |= describe(rollout, rewards, watch)
                self.folder.log(step, metrics)
                self.stall.observe(step, metrics)
                bar.advance({name: metrics[name] for name in ("reward", "rewards/accuracy")})
                if due(step, config.log_completions_steps):
                    self.show(step, problems, texts, rewards)
                if due(step, config.save_steps):
                    self.save(f"checkpoint-{step}")
                if due(step, config.eval_steps) and step < config.max_steps:
                    self.evaluate("grpo", step)

    def evaluate(self, stage: Stage, step: int) -> None:
        """Held-out evaluation, always with the same draws, so that evaluations compare."""
        template, seed = self.config.task.prompt_template, derive_seed(self.config.seed, "eval")
        result = evaluate(
            self.engine,
            self.tokenizer,
            self.heldout,
            self.rewards,
            self.config.eval,
            template,
            seed,
            self.config.rollout.stop,
        )
        self.evaluations.append(result)
        figures = {f"eval/{name}": value for name, value in result.as_dict().items()}
        self.folder.log(step, figures, stage=stage)
        self.folder.log_samples(step, result.samples, stage=stage)
        CONSOLE.print(f"{stage} step {step}: held-out pass@1 {result.pass_at_1:.1%}")

    def show(
        self, step: int, problems: Sequence[Problem], texts: Sequence[str], rewards: RewardBatch
    ) -> None:
        """Some completions of the first two prompts, on the terminal."""
        group = self.config.grpo.num_generations
        rows = [start + i for start in (0, group) for i in range(min(group, SHOWN))]
        rows = [row for row in rows if row < len(texts)]
        scores = {name: [values[row] for row in rows] for name, values in rewards.by_name.items()}
        questions = [problems[row].question for row in rows]
        show_completions(step, questions, [texts[row] for row in rows], scores)

    def save(self, name: str) -> Path:
        with self.signals.held():
            return save_checkpoint(self.model, self.tokenizer, self.folder.path / name)

    def finish(self, *, stopped_by: BaseException | None = None) -> dict[str, Any]:
        """Checkpoint, plots, summary and the table of before and after.

        What fails of them keeps none of the others from being written, and the summary says so.
        Then the first failure is raised, or logged where the run ends by `stopped_by` anyway.
        """
        failures: list[BaseException] = []
        checkpoint: Path | None = None
        plots: list[Path] = []
        with collected(failures):
            checkpoint = self.save("checkpoint")
        with collected(failures):
            plots = self.folder.plot()
        summary: dict[str, Any] = {
            "name": self.config.name,
            "seed": self.config.seed,
            "folder": str(self.folder.path),
            "checkpoint": str(checkpoint) if checkpoint else None,
            "parameters": self.model.num_parameters(),
            "seconds": time.perf_counter() - self.started,
            "interrupted": False,
        }
        if warnings := [*self.stall.said.values(), *map(named, failures)]:
            summary["warnings"] = warnings
        if self.evaluations:
            ends = {"before": self.evaluations[0], "after": self.evaluations[-1]}
            summary["pass@1"] = {when: result.pass_at_1 for when, result in ends.items()}
            summary["evaluation"] = {when: result.as_dict() for when, result in ends.items()}
        with collected(failures):
            self._summarize(summary, [stopped_by, self.signals.waiting, *failures])
            if self.signals.waiting:  # it may have come while the summary was written
                self._summarize(summary, [stopped_by, self.signals.waiting, *failures])
        with collected(failures):  # last: a terminal that has gone, or a closed pipe, costs nothing
            if self.evaluations:
                show_before_after(self.evaluations[0], self.evaluations[-1], plots)
            path = self.folder.path / "summary.json"
            CONSOLE.print(f"{'interrupted; ' * summary['interrupted']}{path}", soft_wrap=True)
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


def draw(problems: Sequence[Problem], count: int, step: int, seed: int) -> list[Problem]:
    """The problems of a step, counted from 1: epoch after epoch, each in an order of its own."""
    first = (step - 1) * count
    return [
        problems[_order(len(problems), epoch, seed)[place]]
        for epoch, place in (divmod(i, len(problems)) for i in range(first, first + count))
    ]


@lru_cache(maxsize=2)
def _order(size: int, epoch: int, seed: int) -> Sequence[int]:
    return random.Random(derive_seed(seed, "order", epoch)).sample(range(size), size)


def due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`, where 0 is never."""
    return every > 0 and step % every == 0


def describe(rollout: Rollout, rewards: RewardBatch, watch: Stopwatch) -> dict[str, float]:
    """What a step logs of its completions and their rewards, and of its time."""
    return {
        "reward": fmean(rewards.total),
        **{f"rewards/{name}": fmean(values) for name, values in rewards.by_name.items()},
        "verifier/errors": rewards.errors,
        "verifier/timeouts": rewards.timeouts,
        "completions/mean_length": fmean(rollout.lengths),
        "completions/clipped_ratio": 1 - fmean(rollout.finished),
        "tokens_per_second": sum(rollout.lengths) / watch.total(),
        "peak_memory_gib": peak_memory_gib(),
        **watch.seconds,
    }
