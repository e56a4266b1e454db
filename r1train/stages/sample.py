"""Sampling: completions of training problems, scored, in a file that other stages learn from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from r1train.config.sample import SampleConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.encode import encode_prompts
from r1train.data.epochs import draw
from r1train.data.fields import PROMPT_FIELDS
from r1train.data.problems import Problem, ProblemSet
from r1train.data.prompts import opens_think
from r1train.data.response import OPEN
from r1train.data.row_file import Row, RowFile, line_of
from r1train.data.samples import Sample, samples_of
from r1train.engine.base import Sampling, requests
from r1train.report.console import CONSOLE, ProgressBar, show_counts
from r1train.rewards.manager import EVALUATED
from r1train.stages.base import Context, Stage
from r1train.stages.table import write_table

KEPT, SAMPLED = "completions.jsonl", "sampled.jsonl"
DROPPED = "dropped"
"""Key of a row in `SAMPLED` that is not in `KEPT`: why."""
OTHERS_KEYS = {*PROMPT_FIELDS, "messages", "chosen", "rejected", "label", DROPPED}
"""What readers of samples would take for something else than a field of the problem."""


class SampleStage(Stage):
    """`num_generations` completions of each problem, with their rewards; a subclass drops some.

    All completions go to `sampled.jsonl`, a batch at a time, and why one was dropped: a stage that
    was broken off goes on after the last batch that is whole, with the completions that it would
    have sampled anyway. At the end those that are kept go to `completions.jsonl`. Held-out
    questions never enter, since training problems alone are sampled.
    """

    leaves = "samples"
    uses = ("task", "rewards", "rollout", "sample")
    section: ClassVar[str] = "sample"
    reasons: Sequence[str] = ()
    """Why a completion may be dropped, in the order in which that is asked."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        options, rollout = self.options(context.config), context.config.rollout
        self.generations = options.num_generations
        self.prompts = min(options.num_prompts or len(context.train), len(context.train))
        self.at_once = max(1, rollout.batch_size // self.generations)
        self.template = context.config.task.prompt_template
        self.sampling = Sampling.training(rollout)

    @classmethod
    def options(cls, config: Config) -> SampleConfig:
        """Its section."""
        found: SampleConfig = getattr(config, cls.section)
        return found

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """There are as many problems as are to be sampled."""
        own = cls.options(config)
        enough = own.num_prompts is None or own.num_prompts <= len(train)
        reason = f"there are {len(train)} training problems: give at most so many, or none for all"
        own.require(enough, "num_prompts", reason)

    def drop(self, group: Sequence[Sample], rows: Sequence[Row], place: int) -> None:
        """Sets `DROPPED` in the rows of a problem's completions that are not kept; it is the
        `place`th problem of the stage."""

    def further(self, kept: int) -> Iterator[Row]:
        """Rows from elsewhere, to go beside so many that are kept."""
        yield from ()

    def run(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        left, everything = folder / KEPT, folder / SAMPLED
        if left.exists():  # it was finished before, and a file of it is damaged
            left.unlink()
            everything.unlink(missing_ok=True)
        sampled = RowFile(everything, self.at_once * self.generations)
        self._sample(folder.name, sampled)
        partial = left.with_suffix(".partial")
        counts = self._write(sampled, partial)
        write_table(folder, counts)
        show_counts(folder.name, counts)
        os.replace(partial, left)
        return left

    def _sample(self, name: str, sampled: RowFile) -> None:
        """Adds the batches that are not there yet."""
        batches, done = -(-self.prompts // self.at_once), sampled.whole_batches()
        if done:
            CONSOLE.print(f"{name}: goes on after batch {done} of {batches}")
        self.context.sync(self.context.engine.version + 1)
        with ProgressBar(name, batches, done=done) as bar:
            for batch in range(done, batches):
                rows = self._batch(batch)
                sampled.append(rows)
                bar.advance({"kept": sum(DROPPED not in row for row in rows) / len(rows)})

    def _batch(self, batch: int) -> list[Row]:
        """Completions of the next problems. What is sampled of one depends on its place alone."""
        context, n, first = self.context, self.generations, batch * self.at_once
        problems = draw(context.train, self.at_once, batch + 1, context.seed)
        problems = problems[: self.prompts - first]
        prompts = encode_prompts(context.tokenizer, problems, self.template)
        asked = requests(prompts, n, context.seed, "sample", first=first)
        rollout = context.engine.generate(asked, self.sampling)
        repeated = [problem for problem in problems for _ in range(n)]
        samples = samples_of(
            *(repeated, rollout.completion_ids, rollout.finished),
            *(context.tokenizer, self.template),
        )
        scored = context.rewards.score(samples, also=EVALUATED)
        rows = [
            row_of(sample, scored.total[i], {k: values[i] for k, values in scored.by_name.items()})
            for i, sample in enumerate(samples)
        ]
        for i in range(len(problems)):
            group = slice(i * n, (i + 1) * n)
            self.drop(samples[group], rows[group], first + i)
        return rows

    def _write(self, sampled: RowFile, left: Path) -> dict[str, float]:
        """Writes what is kept, and what goes beside it; returns the figures of the table."""
        dropped, rewards, right = Counter[str](), list[float](), list[float]()
        kept, general, solved = 0, 0, set[int]()
        with open(left, "w", encoding="utf-8") as file:
            for number, row in enumerate(sampled):
                rewards.append(row["reward"])
                if row["accuracy"] is not None:
                    right.append(row["accuracy"])
                if DROPPED in row:
                    dropped[row[DROPPED]] += 1
                    continue
                kept += 1
                solved.add(number // self.generations)
                file.write(line_of(row))
            if not kept:
                raise ConfigError(
                    f"{self.section}: none of {len(rewards)} completions is kept, for these "
                    f"reasons: {dict(dropped)}: start from a better model, sample more, or ask "
                    f"for less; all are in {sampled.path}"
                )
            for row in self.further(kept):
                general += 1
                file.write(line_of(row))
        return {
            "prompts": self.prompts,
            "completions": len(rewards),
            **{f"dropped/{reason}": dropped[reason] for reason in self.reasons},
            "kept": kept,
            "prompts_kept": len(solved),
            "general": general,
            "samples": kept + general,
            "reward": sum(rewards) / len(rewards),
            **({"accuracy": sum(right) / len(right)} if right else {}),
        }


def row_of(sample: Sample, reward: float, rewards: dict[str, float | None]) -> Row:
    """What a file says of a sample: it can be read as a demonstration, as a problem, and as an
    answer with a score."""
    problem = sample.problem
    return {
        **_plain(problem),
        "prompt": [{"role": role, "content": text} for role, text in problem.messages]
        or problem.question,
        "completion": OPEN * opens_think(sample.prompt) + sample.completion,
        "answer": problem.answer,
        "answer_type": problem.answer_type,
        "accuracy": rewards["accuracy"],
        "reward": reward,
        "rewards": rewards,
        "tokens": len(sample.completion_ids),
        "finished": sample.finished,
    }


def _plain(problem: Problem) -> Row:
    """What else is known of a problem that is text or a number, such as its language and level."""
    known = {**problem.metadata, **problem.columns}
    return {
        key: value
        for key, value in known.items()
        if isinstance(value, str | int | float) and key not in OTHERS_KEYS
    }
