"""Where an FP8 layer was measured to be faster, forward and backward, than one in another dtype.

``python -m benchmarks prove`` makes ``speed.json`` of the records of ``benchmarks fp8``. What
has no record on a processor is not known to be faster there.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from r1kernels.core import native

FILE = Path(__file__).with_suffix(".json")


class Speed(NamedTuple):
    """Seconds of y = x·wᵀ and its gradients, x [rows, depth] and w [columns, depth]."""

    columns: int
    depth: int
    rows: int
    fp8: float
    plain: float
    """In the dtype that it is listed under."""

    def __str__(self) -> str:
        unit, factor = ("ms", 1e3) if max(self.fp8, self.plain) < 1 else ("s", 1)
        return (
            f"{self.fp8 * factor:.3g} against {self.plain * factor:.3g} {unit} of "
            f"{self.rows} × {self.columns} × {self.depth}"
        )


class Verdict(NamedTuple):
    """Whether FP8 is faster, and the figures that say so."""

    faster: bool
    reason: str


@cache
def table() -> dict[str, dict[str, list[Speed]]]:
    """processor → dtype → what was measured."""
    found = json.loads(FILE.read_text())
    return {
        processor: {dtype: [Speed(*row) for row in rows] for dtype, rows in by_dtype.items()}
        for processor, by_dtype in found.items()
    }


def of(weight: Tensor) -> Verdict:
    """Whether a layer of this weight [..., N, K] trains faster in FP8, where it is.

    The largest measured weight that is no larger in either direction decides, at every number of
    rows that it was measured with: FP8 gains with the size.
    """
    processor, dtype = native.processor(weight.device), _name(weight.dtype)
    where = f"in {dtype} on {processor}"
    measured = table().get(processor, {}).get(dtype, [])
    if not measured:
        return Verdict(False, f"no record of its speed against one {where}")
    columns, depth = weight.shape[-2:]
    inside = [s for s in measured if s.columns <= columns and s.depth <= depth]
    if not inside:
        least = min(measured, key=lambda s: s.columns * s.depth)
        return Verdict(
            False,
            f"no record of a weight as small as {columns} × {depth} against one {where}, the "
            f"smallest is {least.columns} × {least.depth}",
        )
    _, *size = max((s.columns * s.depth, s.columns, s.depth) for s in inside)
    figures = [s for s in inside if [s.columns, s.depth] == size]
    faster = all(s.fp8 < s.plain for s in figures)
    said = "faster" if faster else "slower"
    shown = ", ".join(str(s) for s in figures if (s.fp8 < s.plain) == faster)
    return Verdict(faster, f"forward and backward {said} than {where}: {shown}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
