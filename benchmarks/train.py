"""A step of training, end to end: rollout and update of whole models, in tokens a second."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import peers
from benchmarks.record import Row
from benchmarks.table import show, significant
from benchmarks.train_tasks import Scenario
from benchmarks.whole import SECONDS, measure, title

MINI = {"model": "deepseek-v3-mini", "prompts": 16, "group": 8, "prompt": 24, "completion": 32}
DENSE = {"model": "llama-mini", "prompts": 8, "group": 8, "prompt": 64, "completion": 64}
SMOLLM2 = {"model": "smollm2-135m", "prompts": 32, "group": 16, "prompt": 96, "completion": 128}
LARGE = {"token_budget": 32768}  # what fits with the logits that others make

SCENARIOS = {
    "cpu": (
        Scenario("mini", **MINI),
        Scenario("mini, half the groups", **MINI, active=0.5),
        Scenario("dense", **DENSE),
        Scenario("dense, bf16", **DENSE, dtype=torch.bfloat16),
        Scenario("mini", **MINI, kind="rollout"),
        Scenario("dense", **DENSE, kind="rollout"),
    ),
    "cuda": (
        Scenario("smollm2, bf16", **SMOLLM2, **LARGE, dtype=torch.bfloat16),
        Scenario("smollm2", **SMOLLM2, **LARGE),
        Scenario("smollm2, half the groups", **SMOLLM2, **LARGE, active=0.5),
        Scenario("smollm2, bf16", **SMOLLM2, kind="rollout", dtype=torch.bfloat16),
        Scenario("smollm2", **SMOLLM2, kind="rollout"),
    ),
}


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table and the tokens a second each, and give the rows."""
    for scenario in SCENARIOS[device][: 1 if quick else None]:
        rows, problems = measure(scenario, device, quick, rounds=(3, 20), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        print(f"tokens of completions a second: {rates(scenario, rows)}", flush=True)
        yield rows
    print(peers.missing(device))


def rates(scenario: Scenario, rows: list[Row]) -> str:
    known = [(row.implementation, row.seconds) for row in rows if row.seconds]
    return ", ".join(f"{name} {significant(scenario.tokens / seconds)}" for name, seconds in known)
