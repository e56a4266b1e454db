"""Records of benchmark runs: one JSON line for each op, case, implementation and device."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from r1kernels.op import OPS, Op

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = {"cpp": "csrc/cpu", "cuda": "csrc/cuda", "triton": "r1kernels/triton"}
KEY = ("op", "case", "implementation")


@dataclass(frozen=True)
class Row:
    """What one implementation did on one case. No speed is kept where the result was wrong.

    seconds: median. roofline: the least possible time on this device, over the measured one.
    ratio: time over that of the fastest peer. error: see ``compare.Parity``.
    peak, returned: bytes above the inputs, and those of them that are results.
    """

    op: str
    case: str
    implementation: str
    seconds: float | None
    tflops: float | None
    gbps: float | None
    roofline: float | None
    ratio: float | None
    error: float
    peak: int | None = None
    returned: int | None = None
    source: str = ""


def sources(op: Op, backend: str) -> list[Path]:
    """The files that make ``op`` on ``backend``: its own, and headers that belong to no op."""
    stem = _stem(op)
    others = {_stem(other) for other in OPS.values()} - {stem}
    folder = ROOT / SOURCES[backend]
    own = sorted(folder.glob(f"{stem}*"))
    if not own:
        return []
    headers = chain((ROOT / "csrc/common").glob("*.h"), folder.glob("*.h"))
    shared = [path for path in headers if path.stem not in others and path not in own]
    declared = sorted((ROOT / "r1kernels" / "ops").glob(f"{stem}*.py"))
    return [*declared, *own, *sorted(shared)]


def source_hash(op: Op, backend: str) -> str:
    digest = hashlib.sha256()
    for path in sources(op, backend):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def save(rows: list[Row], device: str) -> Path:
    """Replace the records of these rows on this device, and keep the others."""
    environment: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    path = RESULTS / f"{slug}.jsonl"
    records = {_key(record): record for record in _read(path)}
    records |= {_key(asdict(row)): {**asdict(row), **environment} for row in rows}
    lines = [json.dumps(records[key]) for key in sorted(records)]
    path.write_text("\n".join(lines) + "\n")
    return path


def load() -> list[dict[str, Any]]:
    return [record for path in sorted(RESULTS.glob("*.jsonl")) for record in _read(path)]


def status() -> list[str]:
    """One line for each op × backend whose speed is unknown, or known of older source only."""
    known = {(r["op"], r["implementation"]): r["source"] for r in load()}
    lines = []
    for op in OPS.values():
        for backend in SOURCES:
            if not sources(op, backend) or not any(case.bench for case in op.cases):
                continue
            recorded = known.get((op.name, backend))
            if recorded != source_hash(op, backend):
                lines.append(
                    f"{op.name} × {backend}: {'older source' if recorded else 'no record'}"
                )
    return lines


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return f"{model[1] if model else platform.machine()} × {torch.get_num_threads()}"


def _stem(op: Op) -> str:
    return op.backends["torch"].run.__module__.rpartition(".")[2].removesuffix("_op")


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(record[name] for name in KEY)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"
