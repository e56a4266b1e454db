"""``device_records.json`` from the records: where a guarded kernel was right, and the fastest.

And ``fp8/speed.json``: where FP8 layers are faster than others.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

from benchmarks import fp8_speed
from benchmarks.status import source_hash
from r1kernels.core import device_records
from r1kernels.core.op import OPS, PREFERENCE, Op

Record = dict[str, Any]


def prove(records: list[Record]) -> dict[str, dict[str, list[str]]]:
    """op → implementation → devices on which every case of the present source says so."""
    found: dict[str, dict[str, list[str]]] = {}
    for op in OPS.values():
        for name in _guarded(op):
            mine = [r for r in records if r["op"] == op.name]
            devices = sorted({r["device"] for r in mine if r["implementation"] == name})
            good = [device for device in devices if _better(op, name, mine, device)]
            if good:
                found.setdefault(op.name, {})[name] = good
    return found


def write(records: list[Record]) -> None:
    device_records.FILE.write_text(json.dumps(prove(records), indent=2, ensure_ascii=False) + "\n")
    fp8_speed.write(records)


def _guarded(op: Op) -> list[str]:
    every = [name for backend in chain(*PREFERENCE.values()) for name in op.named(backend)]
    return [name for name in every if op.implementations[name].guarded]


def _better(op: Op, name: str, records: list[Record], device: str) -> bool:
    """Right in all of its cases, and in each faster than all others of ours there."""
    there = [record for record in records if record["device"] == device]
    own = [record for record in there if record["implementation"] == name]
    backends = PREFERENCE[own[0]["kind"]]
    return all(
        record["source"] == source_hash(op, name)
        and record["seconds"] is not None
        and all(
            record["seconds"] < rival["seconds"]
            for rival in there
            if rival["implementation"].partition(":")[0] in backends
            and rival["case"] == record["case"]
            and rival is not record
            and rival["seconds"]
        )
        for record in own
    )
