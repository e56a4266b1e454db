"""What the steps of solutions are worth, estimated by rollouts.

The value of a step is the share of the policy's own continuations of it that reach the right answer
(Math-Shepherd's soft estimation, arXiv 2312.08935). A whole solution is worth what it says: 1
where it is right, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from r1train.engine.base import Engine, Request, Sampling
from r1train.seeds import derive_seed

Judge = Callable[[Sequence[int], Sequence[list[int]], Sequence[bool]], Sequence[float]]
"""Of problems by number, solutions as tokens and whether they have ended: 1 where right, else 0.
Those of a problem are adjacent."""


def step_values(
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    solutions: Sequence[Sequence[int]],
    finished: Sequence[bool],
    ends: Sequence[Sequence[int]],
    *,
    engine: Engine,
    sampling: Sampling,
    rollouts: int,
    judge: Judge,
    seed: int,
) -> list[list[float]]:
    """The value of each solution's prefixes of these lengths, the last of which is all of it.

    Solution i is of problem `owners[i]`, and those of a problem are adjacent. A prefix that several
    share has one value. Its continuations follow from `seed`, the problem and the prefix alone;
    what they and the prefix have beyond `sampling.max_new_tokens` is cut off.
    """
    outcomes = judge(owners, [list(solution) for solution in solutions], finished)
    keys = dict.fromkeys(
        (owner, tuple(solution[:end]))
        for owner, solution, own in zip(owners, solutions, ends, strict=True)
        for end in own[:-1]
    )
    prefixes = sorted(keys, key=lambda key: key[0])
    known: dict[tuple[int, tuple[int, ...]], float] = {}
    if prefixes:
        shortest = min(len(prefix) for _, prefix in prefixes)
        room = sampling.max_new_tokens - shortest
        requests = [
            Request([*prompts[owner], *prefix], rollouts, derive_seed(seed, owner, *prefix))
            for owner, prefix in prefixes
        ]
        sampled = engine.generate(requests, replace(sampling, max_new_tokens=room))
        rows = [key for key in prefixes for _ in range(rollouts)]
        whole, ended = [], []
        for (_, prefix), ids, end in zip(
            rows, sampled.completion_ids, sampled.finished, strict=True
        ):
            whole.append([*prefix, *ids][: sampling.max_new_tokens])
            ended.append(end and len(prefix) + len(ids) <= sampling.max_new_tokens)
        right = judge([owner for owner, _ in rows], whole, ended)
        for i, key in enumerate(prefixes):
            known[key] = fmean(right[i * rollouts : (i + 1) * rollouts])
    return [
        [*(known[owner, tuple(solution[:end])] for end in own[:-1]), outcome]
        for owner, solution, own, outcome in zip(owners, solutions, ends, outcomes, strict=True)
    ]
