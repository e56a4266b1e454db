"""What stands between a model's products: norms, rotations, gates, and a model with and without."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from benchmarks import peers
from benchmarks.elementwise_tasks import Scenario
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.whole import SECONDS, measure, title

NORM, ROTATE, GATE, LAYERS = "norm", "rotate", "gate", "layers"
SCENARIOS = {
    "cpu": (
        Scenario("add and norm", NORM, (4096, 2048)),
        Scenario("rotation", ROTATE, (2, 1024, 32, 8, 64)),
        Scenario("SwiGLU", GATE, (2048, 8192)),
        Scenario("a small model", LAYERS, (4, 256), "llama-mini", yardstick="hf"),
    ),
    "cuda": (
        *(Scenario(f"add and norm, H {h}", NORM, (8192, h)) for h in (576, 2048, 4096, 7168)),
        Scenario("rotation", ROTATE, (8, 1024, 32, 8, 128)),
        Scenario("SwiGLU", GATE, (8192, 14336)),
        Scenario("SwiGLU, narrow", GATE, (8192, 1536)),
        Scenario("SmolLM2-135M's shape", LAYERS, (16, 512), "smollm2-135m", yardstick="hf"),
    ),
}


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table each, and give the rows."""
    scenarios = SCENARIOS[device]
    for scenario in scenarios[:1] if quick else scenarios:
        if scenario.kind == LAYERS and find_spec("transformers") is None:
            print(f"no {scenario.name}: package transformers is not installed")
            continue
        rows, problems = measure(scenario, device, quick, rounds=(3, 100), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        yield rows
    print(peers.missing(device))
