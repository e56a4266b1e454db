"""On-policy distillation: from hidden states of student and teacher to the student's gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import peers
from benchmarks.distill_tasks import Scenario
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.whole import SECONDS, measure, title

SCENARIOS = {
    "cpu": (
        Scenario("SmolLM2-135M from 360M", 1024, 576, 960, 49152),
        Scenario("Qwen2.5-0.5B from 1.5B", 512, 896, 1536, 151936),
        Scenario("many rows", 2048, 576, 960, 49152),
        Scenario("float32", 1024, 576, 960, 49152, torch.float32),
    ),
    "cuda": (
        Scenario("Qwen2.5-1.5B from 7B", 4096, 1536, 3584, 151936),
        Scenario("Qwen2.5-7B from 32B", 8192, 3584, 5120, 151936),
    ),
}


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table each, and give its rows."""
    for scenario in SCENARIOS[device][: 1 if quick else None]:
        rows, problems = measure(scenario, device, quick, rounds=(3, 30), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        yield rows
    print(peers.missing(device))
