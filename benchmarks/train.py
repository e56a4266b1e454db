"""A step of training, end to end: update and rollout of whole models, and whole steps of GRPO."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch

from benchmarks import peers, race, table, whole
from benchmarks.peers import ablations
from benchmarks.record import Row
from benchmarks.rounds import Round, fastest, pace, ratios, timed, verdict
from benchmarks.train_tasks import Scenario
from benchmarks.whole import SECONDS, WE
from r1kernels.testing.timing import Call

MINI = {"model": "deepseek-v3-mini", "prompts": 6, "group": 16, "prompt": 24, "completion": 32}
DENSE = {"model": "llama-mini", "prompts": 2, "group": 8, "prompt": 48, "completion": 48}
# What r1train's own ways are worth: the same without one of them.
LONG_PROMPTS = {"model": "deepseek-v3-mini", "prompts": 4, "group": 8, "prompt": 64,
                "completion": 64}  # fmt: skip
MANY_GROUPS = {"model": "deepseek-v3-mini", "prompts": 10, "group": 8, "prompt": 24,
               "completion": 32}  # fmt: skip
# The batch of the recipe. Peers' logits and float64, which says what is exact, must fit too.
SMOLLM2 = {"model": "smollm2-135m", "prompts": 32, "group": 16, "prompt": 104, "completion": 128}
BF16 = {"dtype": torch.bfloat16, "token_budget": 32768}

ROUNDS = (5, 25)

HEADER = ("run by", "time", "tokens/s", "÷best", "MiB", "error")
SCENARIOS = {
    "cpu": (
        Scenario("mini", **MINI),
        Scenario("mini", **MINI, kind="rollout"),
        Scenario("mini, half the groups", **MINI, active=0.5),
        Scenario("dense", **DENSE),
        Scenario("dense", **DENSE, kind="rollout"),
        Scenario("long prompts", **LONG_PROMPTS, peers=("hf", ablations.OWN_PROMPTS)),
        Scenario(
            "mini, 0.6 of the groups constant",
            **MANY_GROUPS,
            active=0.4,
            peers=("hf", ablations.EVERY_GROUP),
        ),
    ),
    "cuda": (
        Scenario("smollm2, bf16", **SMOLLM2, **BF16),
        Scenario("smollm2, bf16", **SMOLLM2, **BF16, kind="rollout"),
        Scenario("smollm2, bf16, half the groups", **SMOLLM2, **BF16, active=0.5),
        Scenario("smollm2", **SMOLLM2),
        Scenario("smollm2", **SMOLLM2, kind="rollout"),
    ),
}


class Measured(NamedTuple):
    rows: list[Row]
    rounds: list[Round]
    problems: list[str]


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table and who wins, and give the rows."""
    if find_spec("transformers") is None:
        print("no train: package transformers is not installed")
        return
    for scenario in SCENARIOS[device][: 2 if quick else None]:  # one of each kind
        rows, rounds, problems = measure(scenario, device, quick)
        there = [row.implementation for row in rows if row.seconds]
        against = there if WE in there else []
        lines = [verdict(rounds, WE, other) for other in against if other != WE]
        table.show(whole.title(scenario, rows), rows, [*problems, *lines], HEADER, cells)
        yield rows
    print("Every round has other texts, of other lengths. tokens/s counts those of completions.")
    print("error is that of the gradients' worst row, or the share of tokens that differ where")
    print("all before them in the text agree. ÷best and the verdicts are ratios within a round,")
    print("their median and quartiles: who wins is ahead in three quarters of the rounds.")
    print(peers.missing(device))
    if device == "cpu":
        yield from race.bench(device, quick)


def measure(scenario: Scenario, device: str, quick: bool) -> Measured:
    """Check, time and weigh every implementation."""
    errors, right, problems = whole.check(scenario, device)
    rounds = timed(
        {name: partial(prepare, name, scenario, device) for name in right},
        scenario.tokens,
        device=device,
        rounds=(1, 1) if quick else ROUNDS,
        seconds=SECONDS[device],
    )
    best = fastest(rounds, [name for name in right if name != WE])
    rows = []
    for name, error in errors.items():
        time = ratio = None
        if name in right:
            time = scenario.tokens(0) * pace(rounds, name)
            ratio = best and ratios(rounds, name, best).middle
        rows.append(whole.make_row(scenario, device, name, time, ratio, error, weighed=not quick))
    return Measured(rows, rounds, problems)


def prepare(name: str, scenario: Scenario, device: str, round: int) -> Call:
    """What an implementation does in a round, ready to run."""
    return whole.step(name, scenario, scenario.make(device, round=round))


def cells(row: Row) -> list[str]:
    """What one implementation did, under ``HEADER``."""
    name, time, *_, ratio, memory, error = table.cells(row)
    rate = row.seconds and row.shape[0] / row.seconds
    return [name, time, table.significant(rate), ratio, memory, error]
