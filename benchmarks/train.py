"""A step of training, end to end: update and rollout of whole models, in tokens a second."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch

from benchmarks import peers, table
from benchmarks.record import Row
from benchmarks.train_tasks import Scenario
from benchmarks.whole import SECONDS, measure, title

MINI = {"model": "deepseek-v3-mini", "prompts": 6, "group": 16, "prompt": 24, "completion": 32}
DENSE = {"model": "llama-mini", "prompts": 2, "group": 8, "prompt": 48, "completion": 48}
# The batch of the recipe. Peers' logits and float64, which says what is exact, must fit too.
SMOLLM2 = {"model": "smollm2-135m", "prompts": 32, "group": 16, "prompt": 104, "completion": 128}
BF16 = {"dtype": torch.bfloat16, "token_budget": 32768}

HEADER = ("run by", "time", "tokens/s", "÷best", "MiB", "error")
SCENARIOS = {
    "cpu": (
        Scenario("mini", **MINI),
        Scenario("mini", **MINI, kind="rollout"),
        Scenario("mini, half the groups", **MINI, active=0.5),
        Scenario("dense", **DENSE),
        Scenario("dense", **DENSE, kind="rollout"),
    ),
    "cuda": (
        Scenario("smollm2, bf16", **SMOLLM2, **BF16),
        Scenario("smollm2, bf16", **SMOLLM2, **BF16, kind="rollout"),
        Scenario("smollm2, bf16, half the groups", **SMOLLM2, **BF16, active=0.5),
        Scenario("smollm2", **SMOLLM2),
        Scenario("smollm2", **SMOLLM2, kind="rollout"),
    ),
}


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table and the tokens a second each, and give the rows."""
    if find_spec("transformers") is None:
        print("no train: package transformers is not installed")
        return
    for scenario in SCENARIOS[device][: 2 if quick else None]:  # one of each kind
        rows, problems = measure(scenario, device, quick, rounds=(3, 20), seconds=SECONDS[device])
        table.show(title(scenario, rows), rows, problems, HEADER, cells)
        yield rows
    print("tokens/s counts those of the completions. error is that of the gradients' worst")
    print("row, or the share of tokens that differ where all before them in the text agree.")
    print(peers.missing(device))


def cells(row: Row) -> list[str]:
    """What one implementation did, under ``HEADER``."""
    name, time, *_, ratio, memory, error = table.cells(row)
    rate = row.seconds and row.shape[0] / row.seconds
    return [name, time, table.significant(rate), ratio, memory, error]
