"""Held-out evaluation: pass@1 as the mean over k completions, cons@k as their majority vote.

Votes are for what an answer says, not for how it is written: 1/2 and 0.5 are one candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from r1train.answers.clean import is_blank
from r1train.config.evaluation import EvalConfig
from r1train.config.schema import ConfigError, RunError, nearest
from r1train.config.sections import Config
from r1train.data.distinct import hashed
from r1train.data.encode import encode_prompts
from r1train.data.fewshot import few_shot_prompts
from r1train.data.problems import Problem, ProblemSet
from r1train.data.samples import samples_of
from r1train.engine.base import Engine, Sampling, requests
from r1train.report.evaluation import EvalResult, interval
from r1train.rewards.manager import EVALUATED, RewardManager
from r1train.seeds import derive_seed
from r1train.stages.base import Context, Stage
from r1train.stages.table import write_table
from r1train.verify import LONGEST_COMPARED, equivalent

_MOST_COMPARED = 4_000
"""Characters of a problem's answers that its vote compares: it runs between training steps."""


def evaluate(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: ProblemSet,
    rewards: RewardManager,
    config: EvalConfig,
    template: str,
    seed: int,
    stop: tuple[str, ...] = (),
    solved: ProblemSet | None = None,
) -> EvalResult:
    """Sample `config.k` completions of every problem, up to a string of `stop`, and score them.

    `solved` has the problems that few-shot prompts are made of.
    """
    sampling = Sampling.evaluation(config, stop)
    problems, k = problems[: config.limit], config.k
    if config.num_fewshot and solved is not None:
        shown = few_shot_prompts(
            problems, solved, config.num_fewshot, tokenizer, template, derive_seed(seed, "shots")
        )
        prompts = tokenizer(shown)["input_ids"]
    else:
        prompts = encode_prompts(tokenizer, problems, template)
    rollout = engine.generate(requests(prompts, k, seed), sampling)
    repeated = [problem for problem in problems for _ in range(k)]
    samples = samples_of(repeated, rollout.completion_ids, rollout.finished, tokenizer, template)
    scored = rewards.score(samples, also=EVALUATED)
    answers = rewards.answers(samples)
    accuracy = scored.by_name["accuracy"]
    shares, agreed = [], []
    for i, problem in enumerate(problems):
        group = slice(i * k, (i + 1) * k)
        judged = [value for value in accuracy[group] if value is not None]
        if judged:  # by the problem: accuracy applies to all of its completions or to none
            shares.append(fmean(judged))
            agreed.append(vote(answers[group], judged, problem.answer_type))
    return EvalResult(
        pass_at_1=fmean(shares) if shares else math.nan,
        pass_at_1_ci=interval(shares, config.confidence, k),
        cons_at_k=fmean(agreed) if agreed else math.nan,
        cons_at_k_ci=interval(agreed, config.confidence),
        k=k,
        n=len(problems),
        verifiable=len(shares),
        mean_length=fmean(rollout.lengths),
        truncated=fmean(not finished for finished in rollout.finished),
        format_rate=fmean(value or 0.0 for value in scored.by_name["format"]),
        errors=scored.errors["accuracy"],
        timeouts=scored.timeouts["accuracy"],
        rewards={
            name: scored.metrics()[f"rewards/{name}"]
            for name in scored.by_name
            if name not in EVALUATED
        },
        groups=by_group(problems, config, accuracy, rollout.lengths),
        per_problem=per_problem(problems, k, scored.by_name, agreed),
        samples=tuple(
            {
                "prompt": samples[first].prompt,
                "question": problem.question,
                "reference": problem.answer,
                "completion": samples[first].completion,
                "finished": samples[first].finished,
                "rewards": {name: values[first] for name, values in scored.by_name.items()},
            }
            for first, problem in zip(range(0, len(samples), k), problems, strict=True)
        ),
    )


def evaluate_heldout(context: Context, seed: int) -> EvalResult:
    """The held-out problems of a stage, with its own options and the weights as they are."""
    context.sync(context.engine.version + 1)
    return evaluate(
        context.engine,
        context.tokenizer,
        context.heldout,
        context.rewards,
        context.config.eval,
        context.config.task.prompt_template,
        seed,
        context.config.rollout.stop,
        context.train,
    )


def by_group(
    problems: Sequence[Problem],
    config: EvalConfig,
    accuracy: Sequence[float | None],
    lengths: Sequence[int],
) -> dict[str, float]:
    """pass@1 and the mean length of the problems that have a value of a field of `config.by` in
    common, by the value; `config.k` entries of `accuracy` and `lengths` are of one problem."""
    members: dict[str, list[int]] = {}
    for i, problem in enumerate(problems):
        for name in config.by:
            value = {**problem.metadata, **problem.columns}.get(name)
            if value is not None:
                group = members.setdefault(f"{name}={value}", [])
                group += range(i * config.k, (i + 1) * config.k)
    figures: dict[str, float] = {}
    for name, rows in sorted(members.items()):
        judged = [value for row in rows if (value := accuracy[row]) is not None]
        if judged:
            figures[f"pass@1/{name}"] = fmean(judged)
        figures[f"mean_length/{name}"] = fmean(lengths[row] for row in rows)
    return figures


def per_problem(
    problems: Sequence[Problem],
    k: int,
    rewards: Mapping[str, Sequence[float | None]],
    agreed: Sequence[float],
) -> dict[str, dict[str, float]]:
    """See `EvalResult.per_problem`. Of each of `rewards`, k values are of one problem; `agreed` has
    cons@k of the problems to which accuracy applies."""
    keys = [f"{hashed(problem.key):x}" for problem in problems]
    found: dict[str, dict[str, float]] = {}
    for name, values in rewards.items():
        figure = {"accuracy": "pass@1", "format": "format"}.get(name, f"rewards/{name}")
        found[figure] = {
            key: fmean(known)
            for i, key in enumerate(keys)
            if (known := [value for value in values[i * k : (i + 1) * k] if value is not None])
        }
    found[f"cons@{k}"] = dict(zip(found["pass@1"], agreed, strict=True))
    return found


class Evaluate(Stage):
    """Held-out problems, as a stage of its own: a table, and a line of the log."""

    leaves = "table"
    uses = ("task", "rewards", "rollout", "eval")

    @classmethod
    def draws(cls, config: Config) -> bool:
        """To be shown before a question."""
        return config.eval.num_fewshot > 0

    def run(self, folder: Path) -> Path:
        result = evaluate_heldout(self.context, self.context.seed)
        self.results.append(result)
        path = write_table(folder, {**result.as_dict(), "per_problem": result.per_problem})
        check_reached(result, self.context.config.eval)
        return path


def check_reached(result: EvalResult, config: EvalConfig) -> None:
    """Every figure is as large as `eval.at_least` asks for. Raises RunError."""
    figures = result.as_dict()
    for name, least in config.at_least.items():
        if name not in figures:
            raise ConfigError(f"eval.at_least: unknown figure {name!r}: {nearest(name, figures)}")
        figure = figures[name]
        if figure is None:
            raise RunError(f"eval.at_least: {name} has no value: it applies to no held-out problem")
        if not figure >= least:
            raise RunError(
                f"{name} is {figure:.3f}, and eval.at_least asks for {least:g}: what comes "
                "after this stage is meant for an abler model. Another seed may do, or more steps"
            )


def vote(
    answers: Sequence[str | None],
    accuracy: Sequence[float],
    answer_type: str = "auto",
    weights: Sequence[float] | None = None,
) -> float:
    """Accuracy of the most frequent answer; 0 where there is none, or none to be seen. With
    `weights` each answer has as many votes as that.

    Right answers are one candidate: as far as the problem can tell they are the same. Of the wrong
    ones those are that `verify` finds equal to the first of them, and once `_MOST_COMPARED`
    characters were compared, those of the same text.
    """
    left = _MOST_COMPARED
    candidates: list[tuple[str, float]] = []
    votes: list[float] = []
    seen: dict[tuple[str, float], int] = {}
    weights = [1] * len(answers) if weights is None else weights
    for answer, right, weight in zip(answers, accuracy, weights, strict=True):
        if answer is None or is_blank(answer):
            continue
        key = answer, float(right)
        if key not in seen:
            seen[key] = len(candidates)
            for place, (other, other_right) in enumerate(candidates):
                if other_right != right:
                    continue
                if right < 1.0:
                    lengths = len(answer), len(other)
                    cost = sum(lengths) if max(lengths) <= LONGEST_COMPARED else 0
                    if cost > left:
                        continue
                    left -= cost
                    if not equivalent(answer, other, answer_type):
                        continue
                seen[key] = place
                break
            if seen[key] == len(candidates):
                candidates.append(key)
                votes.append(0)
        votes[seen[key]] += weight
    if not votes:
        return 0.0
    return candidates[votes.index(max(votes))][1]  # the first of equals: seen first
