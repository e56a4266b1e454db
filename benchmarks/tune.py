"""Measures launch parameters of the Triton kernels on this GPU, and writes the better ones.

Those of the FP8 products in CUDA C++ are costs of tiles: see ``tune_fp8``.

Each kernel of ``r1kernels/triton/launch.json`` starts from its present parameters. One of them at a
time is halved or doubled (stages: one less, one more) for as long as that makes the benchmark cases
of the kernel's ops faster. What does not compile, or gives a result outside the error budget, is
passed over. The table is written at every gain, so that a run may be cut short.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from typing import Any

import torch

from benchmarks import tune_fp8
from benchmarks.ops import call_ours
from r1kernels.core.op import OPS
from r1kernels.testing.compare import Truth
from r1kernels.testing.timing import interleaved
from r1kernels.triton import launch

GAIN = 0.98  # of the time before: a smaller one is noise
SECONDS = 0.2  # of timing, for each candidate and case
WIDTH = "16"  # bits of the operands of the benchmark cases, but for kernels of FP8 alone

Parameters = dict[str, int]
Checked = tuple[Callable[[], Any], Truth]


def tune(device: str, only: str | None = None) -> None:
    """Tune the kernels of every op, or of ``only``, for the GPU at hand."""
    if only in (None, "fp8_gemm") and device == "cuda" and tune_fp8.can_run():
        tune_fp8.tune()
    table, target = launch.table(), launch.target(torch.device(device))
    for kernel, targets in table.items():
        module = kernel.partition(".")[0]
        if only is not None and not only.startswith(module):
            continue
        if target not in targets:
            print(f"{kernel}: {launch.TABLE.name} has no {target}: to tune it, copy a similar one")
            continue
        print(f"{kernel}, {target}", flush=True)
        cost = partial(seconds_of, list(cases(module, device)), device)
        before, after = descend(targets[target], cost, lambda: write(table))
        print(f"{kernel}, {target}: {before * 1e3:.2f} → {after * 1e3:.2f} ms", flush=True)


def descend(
    entry: dict[str, Parameters], cost: Callable[[], float], keep: Callable[[], None]
) -> tuple[float, float]:
    """Change ``entry[WIDTH]`` for the better; the ``cost`` before and after."""
    width = WIDTH if WIDTH in entry else "8"
    best = entry[width]
    before = least = cost()
    tried = [best]
    while new := next((found for found in neighbours(best) if found not in tried), None):
        tried.append(new)
        entry[width] = new
        seconds = cost()
        print(f"  {seconds * 1e3:8.2f} ms  {new}", flush=True)
        if seconds < GAIN * least:
            best, least = new, seconds
            keep()
    entry[width] = best
    return before, least


def neighbours(parameters: Parameters) -> Iterator[Parameters]:
    for name, value in parameters.items():
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, 2 * value)
        for step in steps:
            new = {**parameters, name: step}
            # A part of a tile is none of more columns than the tile has.
            if step >= 1 and new.get("PART", 0) <= new.get("COLUMNS", inf):
                yield new


def cases(module: str, device: str) -> Iterator[Checked]:
    """The benchmark cases of the ops whose names begin with ``module``."""
    for op in OPS.values():
        for case in op.cases:
            if op.name.startswith(module) and case.timed_on(device):
                args = case.make(device)
                yield partial(call_ours, op, "triton", args), Truth(op, case, args)


def seconds_of(checked: Sequence[Checked], device: str) -> float:
    """Of all cases together; infinite where one fails or is wrong."""
    total = 0.0
    for call, truth in checked:
        try:
            problems = truth.check("triton", call()).problems
        except Exception as error:  # does not compile, or needs more than the GPU has
            problems = (f"{type(error).__name__}: {error}",)
        if problems:
            print(f"  {problems[0]:.76}")
            return inf
        total += interleaved({"": call}, device=device, seconds=SECONDS)[""]
    return total


def write(table: dict[str, Any]) -> None:
    launch.TABLE.write_text(formatted(table))


def formatted(table: dict[str, Any]) -> str:
    """JSON with one line for each set of parameters."""

    def block(value: dict[str, Any], indent: str) -> str:
        if not any(isinstance(item, dict) for item in value.values()):
            return json.dumps(value)
        deeper = indent + "  "
        lines = [f"{deeper}{json.dumps(key)}: {block(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"

    return block(table, "") + "\n"
