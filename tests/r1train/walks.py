"""A policy whose steps are digits: what a prefix is worth can be said exactly.

A solution is `depth` digits, each with a separator behind it but the last, which the end follows:
`0;2;1$`. It is right where every digit is 0. The policy draws each from the same probabilities.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from r1train.config.steps import StepsConfig
from r1train.engine.base import Rollout, Sampling
from r1train.search.steps import Steps

LETTERS = "0123456789;$?"
SEPARATOR, END, PROMPT = (LETTERS.index(letter) for letter in ";$?")


class Letters:
    """A tokenizer of single letters."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(LETTERS[token] for token in ids)


@dataclass
class Walks:
    """The policy, as an engine."""

    depth: int
    weights: tuple[float, ...]
    """Probability of each digit."""
    generated: int = 0
    """Tokens, over all calls."""
    version: int = 0
    requests: list = field(default_factory=list)

    def generate(self, requests, sampling):
        self.requests += requests
        rows = [self._row(one, j, sampling) for one in requests for j in range(one.n)]
        lengths = torch.tensor([0, *(len(ids) for ids, _ in rows)]).cumsum(0)
        tokens = torch.tensor([token for ids, _ in rows for token in ids])
        self.generated += len(tokens)
        return Rollout(
            [list(one.prompt_ids) for one in requests],
            [i for i, one in enumerate(requests) for _ in range(one.n)],
            tokens,
            lengths.int(),
            torch.zeros(len(tokens)),
            [finished for _, finished in rows],
        )

    def _row(self, request, j, sampling):
        prompt = tuple(request.prompt_ids)
        rng = random.Random(f"{request.seed}/{j}/{prompt}")
        before = list(prompt[prompt.index(PROMPT) + 1 :])
        ids = []
        while len(ids) < sampling.max_new_tokens:
            so_far = before + ids
            if so_far and so_far[-1] < 10:
                last = sum(token < 10 for token in so_far) == self.depth
                ids.append(END if last else SEPARATOR)
            else:
                ids += rng.choices(range(len(self.weights)), self.weights)
            if ids[-1] == END or (ids[-1] == SEPARATOR and ";" in sampling.stop):
                return ids, True
        return ids, False

    def value(self, tokens):
        """Exactly what a prefix of whole steps is worth."""
        digits = [token for token in tokens if token < 10]
        return 0.0 if any(digits) else self.weights[0] ** (self.depth - len(digits))

    def steps(self, limit=None, max_tokens=64):
        sampling = Sampling(max_new_tokens=limit or 2 * self.depth)
        return Steps(StepsConfig((";",), max_tokens), Letters(), sampling, [END])


def right(owners, solutions, finished):
    """1 for a solution that ended, of zeros alone."""
    return [
        float(end and ids[-1] == END and not any(token for token in ids if token < 10))
        for ids, end in zip(solutions, finished, strict=True)
    ]


def prompts(count):
    """Different ones: they say nothing."""
    return [[i % 10, i // 10 % 10, PROMPT] for i in range(count)]
