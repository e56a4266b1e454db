"""Held-out evaluation: pass@1 as the mean over k completions, cons@k as their majority vote.

Votes are for what an answer says, not for how it is written: 1/2 and 0.5 are one candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from r1train.config.sections import Config, EvalConfig
from r1train.data.encode import decode_completions, encode_prompts
from r1train.data.problems import ProblemSet, load_problems
from r1train.data.prompts import opens_think, render_prompt
from r1train.engine.base import Engine, Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.model.limits import check_problems
from r1train.model.load import load_model
from r1train.report.evaluation import EvalResult, interval
from r1train.rewards.base import RewardPool, extract_answer
from r1train.seeds import derive_seed, deterministic
from r1train.verify import LONGEST_COMPARED, equivalent

_MOST_COMPARED = 4_000
"""Characters of a problem's answers that its vote compares: it runs between training steps."""


def evaluate(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: ProblemSet,
    reward_pool: RewardPool,
    config: EvalConfig,
    template: str,
    seed: int,
    stop: tuple[str, ...] = (),
) -> EvalResult:
    """Sample `config.k` completions of every problem, up to a string of `stop`, and score them."""
    if config.max_completion_length is None:
        raise ValueError("eval.max_completion_length is None: a Config sets it from the rollout's")
    problems, k = problems[: config.limit], config.k
    prompts = encode_prompts(tokenizer, problems, template)
    sampling = Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=stop,
    )
    requests = [Request(prompt, k, derive_seed(seed, i)) for i, prompt in enumerate(prompts)]
    rollout = engine.generate(requests, sampling)
    texts = decode_completions(tokenizer, rollout.completion_ids)
    rewards = reward_pool.score(texts, [problem for problem in problems for _ in range(k)])
    accuracy, formatted = rewards.by_name["accuracy"], rewards.by_name["format"]
    groups = [slice(start, start + k) for start in range(0, len(texts), k)]
    solved = [fmean(accuracy[group]) for group in groups]
    agreed = [
        majority(texts[group], accuracy[group], problem.answer_type)
        for group, problem in zip(groups, problems, strict=True)
    ]
    return EvalResult(
        pass_at_1=fmean(solved),
        pass_at_1_ci=interval(solved, config.confidence, k),
        cons_at_k=fmean(agreed),
        cons_at_k_ci=interval(agreed, config.confidence),
        k=k,
        n=len(problems),
        mean_length=fmean(rollout.lengths),
        truncated=fmean(not finished for finished in rollout.finished),
        format_rate=fmean(formatted),
        errors=rewards.errors,
        timeouts=rewards.timeouts,
        samples=tuple(
            {
                "prompt": problem.question,
                "reference": problem.answer,
                "completion": texts[i * k],
                "accuracy": accuracy[i * k],
                "format": formatted[i * k],
            }
            for i, problem in enumerate(problems)
        ),
    )


def evaluate_model(config: Config) -> EvalResult:
    """Load `config.model` and evaluate it on the held-out problems of `config.task`."""
    with deterministic():
        return _evaluate_model(config)


def _evaluate_model(config: Config) -> EvalResult:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _, heldout = load_problems(config.task, config.seed)
    model, tokenizer = load_model(config)
    engine = BuiltinEngine.from_config(model, tokenizer, config.rollout)
    template, length = config.task.prompt_template, config.eval.max_completion_length
    check_problems(model, tokenizer, heldout[: config.eval.limit], template, length or 0)
    think_opened = opens_think(render_prompt(heldout[0].prompt, template, tokenizer))
    with RewardPool(config.rewards, heldout, think_opened=think_opened) as rewards:
        seed = derive_seed(config.seed, "eval")
        stop = config.rollout.stop
        return evaluate(engine, tokenizer, heldout, rewards, config.eval, template, seed, stop)


def majority(
    completions: Sequence[str], accuracy: Sequence[float], answer_type: str = "auto"
) -> float:
    """Accuracy of the most frequent extracted answer; 0 where no completion has one.

    Right answers are one candidate: as far as the problem can tell they are the same. Of the wrong
    ones those are that `verify` finds equal to the first of them, and once `_MOST_COMPARED`
    characters were compared, those of the same text.
    """
    left = _MOST_COMPARED
    candidates: list[tuple[str, float]] = []
    votes: list[int] = []
    seen: dict[tuple[str, float], int] = {}
    for completion, right in zip(completions, accuracy, strict=True):
        answer = extract_answer(completion)
        if answer is None:
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
        votes[seen[key]] += 1
    if not votes:
        return 0.0
    return candidates[votes.index(max(votes))][1]  # the first of equals: seen first
