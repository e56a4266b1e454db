"""``device_records.json`` from the records: where a guarded kernel was right, and the fastest.

And ``fp8/speed.json``: where FP8 layers are faster than others.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks import fp8_speed
from benchmarks.status import source_hash
from r1kernels.core import device_records
from r1kernels.core.op import OPS, PREFERENCE, Op

Record = dict[str, Any]


def prove(records: list[Record]) -> dict[str, dict[str, list[str]]]:
    """op → backend → devices on which every case of the present source says so."""
    found: dict[str, dict[str, list[str]]] = {}
    for op in OPS.values():
        for backend in op.guarded:
            mine = [r for r in records if r["op"] == op.name]
            devices = sorted({r["device"] for r in mine if r["implementation"] == backend})
            good = [name for name in devices if _better(op, backend, mine, name)]
            if good:
                found.setdefault(op.name, {})[backend] = good
    return found


def write(records: list[Record]) -> None:
    device_records.FILE.write_text(json.dumps(prove(records), indent=2, ensure_ascii=False) + "\n")
    fp8_speed.write(records)


def _better(op: Op, backend: str, records: list[Record], device: str) -> bool:
    """Right in all of its cases, and in each faster than every other backend of ours there."""
    there = {(r["implementation"], r["case"]): r for r in records if r["device"] == device}
    own = [record for (name, _), record in there.items() if name == backend]
    kind = own[0]["kind"]
    others = [name for name in PREFERENCE[kind] if name != backend]
    return all(
        record["source"] == source_hash(op, backend)
        and record["seconds"] is not None
        and all(
            record["seconds"] < rival["seconds"]
            for name in others
            if (rival := there.get((name, record["case"]))) and rival["seconds"]
        )
        for record in own
    )
