"""The benchmark of norms, rotations and gates: every implementation does the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks import whole
from benchmarks.elementwise_tasks import Scenario
from tests.benchmarking import each_implementation

SMALL = (
    Scenario("small", "norm", (6, 32), dtype=torch.float32),
    Scenario("small", "rotate", (2, 5, 4, 2, 8), dtype=torch.float32),
    Scenario("small", "gate", (6, 32), dtype=torch.float32),
    Scenario("small", "layers", (2, 8), "llama-mini", torch.float32, yardstick="hf"),
)


@each_implementation(SMALL)
def test_every_implementation_does_the_same_task(name: str, scenario: Scenario) -> None:
    if scenario.kind == "layers":
        pytest.importorskip("transformers")
    exact = whole.step(scenario.yardstick, scenario, scenario.make("cpu", torch.float64))()
    task = scenario.make("cpu")
    with torch.compiler.set_stance("force_eager"):  # the formulas; compiling takes long
        call = whole.step(name, scenario, task)
        for _ in range(2):  # nothing stays of the first
            assert whole.error(call(), exact) < 1e-4
