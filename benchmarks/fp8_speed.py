"""``fp8/speed.json`` from the records: what the layers of ``benchmarks fp8`` took, trained."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.fp8 import TRAINED_CASE
from benchmarks.whole import NAME, WE
from r1kernels.fp8 import speed

DTYPES = {"bf16": "bfloat16"}  # of the peers that FP8 is compared with
Record = dict[str, Any]
Table = dict[str, dict[str, list[list[float]]]]


def speeds(records: list[Record]) -> Table:
    """processor → dtype → rows of ``Speed``, from records of both at the same size."""
    found: Table = {}
    trained = [r for r in records if r["op"] == NAME["linear"] and _is_trained(r["case"])]
    right = {(r["device"], r["case"], r["implementation"]): r for r in trained if r["seconds"]}
    for (device, case, name), record in sorted(right.items()):
        ours = right.get((device, case, WE))
        if name not in DTYPES or ours is None:
            continue
        rows, columns, depth = record["shape"]
        times = (round(one["seconds"], 7) for one in (ours, record))
        there = found.setdefault(processor_of(record), {}).setdefault(DTYPES[name], [])
        there.append([columns, depth, rows, *times])
    return {
        processor: {d: sorted(rows) for d, rows in of.items()} for processor, of in found.items()
    }


def write(records: list[Record]) -> None:
    text = json.dumps(speeds(records), ensure_ascii=False, indent=2)
    numbers = re.compile(r"\[([\s\d.,e-]+)\]")  # of one measurement, on one line
    text = numbers.sub(lambda row: f"[{' '.join(row[1].split())}]", text)
    speed.FILE.write_text(text + "\n")


def processor_of(record: Record) -> str:
    """As ``native.processor`` has it: a GPU by its name, a CPU by its instructions."""
    device: str = record["device"]
    return device if record["kind"] == "cuda" else device.rpartition(", ")[2]


def _is_trained(case: str) -> bool:
    return case == TRAINED_CASE or case.startswith(f"{TRAINED_CASE},")
