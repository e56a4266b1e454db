"""How time and memory of the loss grow with the number of rows T, for each implementation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from benchmarks import peers, whole
from benchmarks.record import Row
from benchmarks.table import number, table
from benchmarks.tasks import Scenario

ROWS = (256, 512, 1024, 2048, 4096, 8192)
WIDTH, COLUMNS = {"cpu": 576, "cuda": 4096}, {"cpu": 49152, "cuda": 151936}
SECONDS = {"cpu": 3.0, "cuda": 0.5}  # a peer that took longer is not asked for larger T
PREFIX = "T = "  # of the cases' names


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every T, and give its rows; at the end print time and memory against T."""
    names = list(peers.for_task("grpo", device))
    found: list[Row] = []
    for rows in ROWS[: 2 if quick else None]:
        scenario = Scenario(
            f"{PREFIX}{rows}", rows, WIDTH[device], COLUMNS[device], peers=tuple(names)
        )
        measured, problems = whole.measure(scenario, device, quick, rounds=(3, 9), seconds=1.0)
        print(f"{scenario.name}: {', '.join(row.implementation for row in measured)}", flush=True)
        print("".join(f"{problem:.300}\n" for problem in problems), end="")
        slow = {row.implementation for row in measured if (row.seconds or 0) > SECONDS[device]}
        # Eager stays: it says how exact the others must be.
        names = [name for name in names if name not in slow or name == "eager"]
        found += measured
        yield measured
    if not quick:
        print(report(found))


def report(rows: Sequence[Row]) -> str:
    points = {(row.implementation, row.shape[0]): row for row in rows if row.seconds and row.peak}
    steps = sorted({t for _, t in points})
    lines = {
        name: [points.get((name, t)) for t in steps] for name in dict.fromkeys(n for n, _ in points)
    }
    times = [[name, *cells(line, "seconds", 1e3), exponent(line)] for name, line in lines.items()]
    memory = [[name, *cells(line, "peak", 2.0**-20)] for name, line in lines.items()]
    header = ("run by", *(f"T {t}" for t in steps))
    ours = [row for row in lines[whole.WE] if row is not None]
    per_row = ", ".join(f"{row.seconds * 1e3 / row.shape[0]:.3g}" for row in ours)
    scratch = ", ".join(f"{(row.peak - row.returned) / 2**20:.0f}" for row in ours)
    return "\n".join(
        (
            "\nms, and the p of time ∝ T^p",
            table((*header, "p"), times),
            "\nMiB above the inputs, results included",
            table(header, memory),
            "\nNo figure: too slow at the T before, or wrong.",
            f"{whole.WE}, ms a row: {per_row}",
            f"{whole.WE}, MiB beyond the results: {scratch}",
        )
    )


def cells(line: Sequence[Row | None], field: str, unit: float) -> list[str]:
    return [number(row and getattr(row, field) * unit, ".0f") for row in line]


def exponent(line: Sequence[Row | None]) -> str:
    """Least squares of log time over log T, where the gradient of weight is not most of it."""
    there = [row for row in line if row is not None and row.shape[0] >= 512]
    if len(there) < 2:
        return ""
    x = [math.log(row.shape[0]) for row in there]
    y = [math.log(row.seconds) for row in there]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return f"{slope / sum((a - mean_x) ** 2 for a in x):.2f}"
