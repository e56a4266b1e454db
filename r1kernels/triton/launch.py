"""Launch parameters of the Triton kernels: a fixed table, never a measurement at run time.

``launch.json`` has, by kernel, then by target ("80", "89", "90", "100", "gfx942", "interpret"),
then by the operands' width in bits ("16", "32"), the constexprs that shape the kernel's tiles, and
``num_warps`` and ``num_stages``. They are the same for every number of rows, so a row's result does
not depend on its batch; few rows of experts have narrower tiles, summed in the same steps.
``python -m benchmarks tune`` measures the candidates on a GPU and writes the lines of that GPU's
target anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from r1kernels.core import native
from r1kernels.triton import INTERPRETED

TABLE = Path(__file__).parent / "launch.json"

# What else there is takes the parameters of the target whose shared memory it has.
ALIKE = {"86": "89", "87": "80", "103": "100", "120": "89", "121": "89"}


@cache
def table() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    return json.loads(TABLE.read_text())


@cache
def target(device: torch.device) -> str:
    """The table's name for ``device``; it need not be in the table."""
    if INTERPRETED:
        return "interpret"
    arch = native.architecture(device).removeprefix("sm_")
    return ALIKE.get(arch, arch)


def absent(kernel: str, device: torch.device) -> str | None:
    """Why ``kernel`` has no parameters for ``device``, or None."""
    name = target(device)
    known = table()[kernel]
    return None if name in known else f"has launch parameters for {', '.join(known)}, not {name}"


def parameters(kernel: str, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    return table()[kernel][target(device)][str(8 * dtype.itemsize)]
