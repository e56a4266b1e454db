"""Mixture of experts: routing, permutation and experts, and how they grow with T and with E."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import peers
from benchmarks.moe_tasks import Scenario
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.whole import SECONDS, measure, title

GROUPED = ("hf grouped_mm",)
LOOPED = ("hf grouped_mm", "hf eager")
INDEXED = ("eager", "compile")
MIDDLE = {"top_k": 6, "width": 1024, "inner": 512}  # E 64: 201 MB of weights in bf16
MINI = {"experts": 16, "top_k": 4, "width": 128, "inner": 64}  # of r1-zero-mini
LARGE = {"experts": 128, "top_k": 8, "width": 2048, "inner": 768}  # Qwen3-30B-A3B
CHOICE = {"top_k": 8, "kind": "route", "dtype": torch.float32}  # DeepSeek-V3's

SCENARIOS = {
    "cpu": (
        Scenario("router", 4096, 256, **CHOICE),
        Scenario("router, one token", 1, 256, **CHOICE),
        Scenario("rows", 1024, 64, 6, 1024, kind="permute"),
        Scenario("rows, forward", 1024, 64, 6, 1024, kind="permute", forward=True),
        Scenario("experts", 1024, 64, **MIDDLE, peers=LOOPED),
        Scenario("experts, forward", 1024, 64, **MIDDLE, peers=GROUPED, forward=True),
        Scenario("experts, 16 tokens, forward", 16, 64, **MIDDLE, peers=GROUPED, forward=True),
        Scenario("experts, one token, forward", 1, 64, **MIDDLE, forward=True),
        Scenario("experts, mini", 4096, **MINI, dtype=torch.float32, peers=LOOPED),
        Scenario("experts, mini, few tokens", 256, **MINI, dtype=torch.float32, peers=LOOPED),
        Scenario("experts, float32", 1024, 16, 4, 512, 512, dtype=torch.float32, peers=LOOPED),
    ),
    "cuda": (
        Scenario("router", 4096, 256, **CHOICE),
        Scenario("rows", 4096, 256, 8, 7168, kind="permute"),
        Scenario("rows, forward", 4096, 256, 8, 7168, kind="permute", forward=True),
        Scenario("experts", 8192, **LARGE, peers=GROUPED),
        Scenario("experts, forward", 8192, **LARGE, peers=GROUPED, forward=True),
        Scenario("experts, one token, forward", 1, **LARGE, forward=True),
    ),
}

# Growth: with the number of tokens at 64 experts, and with that of experts at 1024 tokens.
TOKENS, EXPERTS = (64, 256, 1024, 4096), (16, 32, 64, 128, 256)
T_PREFIX, E_PREFIX = "T = ", "E = "  # of the cases' names


def growth() -> Iterator[Scenario]:
    for tokens in TOKENS:
        name = f"{T_PREFIX}{tokens}"
        yield Scenario(name, tokens, 64, **MIDDLE, peers=GROUPED)
        yield Scenario(name, tokens, 64, **CHOICE, peers=INDEXED)
    for experts in EXPERTS:
        name = f"{E_PREFIX}{experts}"
        yield Scenario(name, 1024, experts, **MIDDLE, peers=GROUPED)
        yield Scenario(name, 1024, experts, **CHOICE, peers=INDEXED)


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario and the growth, print a table each, and give the rows."""
    scenarios = SCENARIOS[device]
    for scenario in scenarios[:1] if quick else (*scenarios, *growth()):
        seconds = SECONDS[device] / (2 if "=" in scenario.name else 1)
        rows, problems = measure(scenario, device, quick, rounds=(3, 100), seconds=seconds)
        show(title(scenario, rows), rows, problems)
        yield rows
    print(peers.missing(device))
