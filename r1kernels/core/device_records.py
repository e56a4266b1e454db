"""Which guarded kernels may run unasked on which device: those with a record there.

A kernel that was written without the device it is for is compiled, and tested in an emulator. After
the benchmarks ran on such a device, ``python -m benchmarks prove`` makes ``device_records.json`` of
their records: where the kernel was right, and faster than what would run instead.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

FILE = Path(__file__).with_suffix(".json")


@cache
def table() -> dict[str, dict[str, list[str]]]:
    """op → implementation → names of devices."""
    found: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text())
    return found


def missing(op: str, implementation: str, device: str) -> str | None:
    """Why ``implementation`` does not run unasked on the present device, or None when it may."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    if name in table().get(op, {}).get(implementation, ()):
        return None
    return f"no record on {name} that it is right and faster (python -m benchmarks prove)"
