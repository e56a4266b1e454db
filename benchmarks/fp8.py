"""FP8 linear layers against bf16, from one row to a large batch, quantizing included."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.fp8_tasks import Scenario
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.whole import SECONDS, measure, title
from r1kernels.fp8.gemm import SHAPES

FORWARD = ("bf16", "torch._scaled_mm", "eager")
TRAINED = ("bf16", "eager")
TRAINED_CASE = "trained"  # forward and backward: what `fp8="auto"` goes by
LAYERS = 16  # of a stack whose weights are larger than any cache, as a model's are in generation


def scenarios(device: str) -> Iterator[Scenario]:
    """Forward alone by rows, forward and backward, and on a GPU the shapes of DeepSeek-V3."""
    side = 2048 if device == "cpu" else 7168
    for rows in (1, 8, 64, 512) if device == "cpu" else (1, 8, 64, 512, 4096):
        yield Scenario(f"M = {rows}", rows, side, side, peers=FORWARD)
    for rows in (1, 8):
        name = f"{LAYERS} layers, M = {rows}"
        yield Scenario(name, rows, side, side, peers=FORWARD, layers=LAYERS)
    if device == "cuda":
        for columns, depth in SHAPES:
            name = f"{columns} × {depth}"
            yield Scenario(name, 4096, columns, depth, peers=FORWARD)
    rows = 512 if device == "cpu" else 4096
    yield Scenario(TRAINED_CASE, rows, side, side, forward=False, peers=TRAINED)
    if device == "cuda":
        for columns, depth in ((2112, 7168), (4096, 7168), (7168, 2048)):
            name = f"{TRAINED_CASE}, {columns} × {depth}"
            yield Scenario(name, rows, columns, depth, forward=False, peers=TRAINED)


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every layer, print a table each, and give the rows."""
    wanted = list(scenarios(device))
    for scenario in wanted[:1] if quick else wanted:
        rows, problems = measure(scenario, device, quick, rounds=(3, 300), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        yield rows
