"""The headline: from hidden states or logits to the gradients of a loss, against all peers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import peers
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.tasks import Scenario
from benchmarks.whole import SECONDS, measure, title

FEW = ("compile", "eager", "cce")  # the fastest peers on a CPU, and the measure of exactness

SMALL, LARGE = (1024, 576, 49152), (8192, 4096, 151936)
SCENARIOS = {
    "cpu": (
        Scenario("all active", *SMALL),
        Scenario("37 % active", *SMALL, active=0.37),
        Scenario("frozen head", *SMALL, frozen=True),
        Scenario("odd vocabulary", 1024, 576, 49153, peers=FEW),
        Scenario("few rows", 256, 2048, 32000, peers=FEW),
        Scenario("large vocabulary", 512, 896, 151937, peers=FEW),
        Scenario("many rows", 2048, 1024, 32003, peers=FEW),
        Scenario("float32", *SMALL, dtype=torch.float32, peers=FEW),
    ),
    "cuda": (
        Scenario("all active", *LARGE),
        Scenario("frozen head", *LARGE, frozen=True),
        Scenario("37 % active", *LARGE, active=0.37),
        Scenario("logits given, forward", 8192, 0, 151936, kind="logprob"),
        Scenario("logits given", 8192, 0, 151936, kind="logits"),
        Scenario("cross-entropy", 4096, 4096, 128256, kind="cross_entropy"),
        Scenario("half the rows", 4096, 4096, 128256),
        Scenario("vocabulary 2^17", 8192, 4096, 131072),
    ),
}


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table each, and give its rows."""
    for scenario in SCENARIOS[device][: 1 if quick else None]:
        rows, problems = measure(scenario, device, quick, rounds=(3, 30), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        yield rows
    print("TFLOP/s and %peak count the task's arithmetic (logits once), ÷best is over the fastest")
    print("peer, MiB the peak above the inputs, error that of the gradients' worst row.")
    print(peers.missing(device))
