"""Records of benchmark runs: one JSON line for each op, case, implementation and device."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from r1kernels.core import native

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

KEY = ("op", "case", "implementation")


@dataclass(frozen=True)
class Row:
    """What one implementation did on one case. No speed is kept where the result was wrong.

    seconds: median. tflops, gbps: of the task, over the median. roofline: the least possible time
    on this device, over the measured one. ratio: time over that of the fastest peer.
    error: see ``compare.Parity``, or ``whole.error``. peak, returned: bytes above the inputs, and
    those of them that are results. shape: sizes of a whole task: T, H, V, or T, E, k, H, I, or of
    a step of training T, prompts, completions of each, tokens of the longest prompt and completion.
    source: see ``status``. reward: what a trainer has reached; its error is how far it is behind.
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
    shape: tuple[int, ...] = ()
    source: str = ""
    reward: float | None = None


def save(rows: list[Row], device: str) -> Path:
    """Replace the records of these rows on this device, and keep the others."""
    environment: dict[str, Any] = {
        "kind": device,
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug(environment['device'])}.jsonl"
    records = {_key(record): record for record in _read(path)}
    records |= {_key(asdict(row)): {**asdict(row), **environment} for row in rows}
    lines = [json.dumps(records[key]) for key in sorted(records)]
    path.write_text("\n".join(lines) + "\n")
    return path


def slug(device: str) -> str:
    """The name of a device in names of files."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def load() -> list[dict[str, Any]]:
    return [record for path in sorted(RESULTS.glob("*.jsonl")) for record in _read(path)]


def device_name(device: str) -> str:
    """Of a CPU: virtual ones of several generations have one name, so its instructions too."""
    processor = native.processor(torch.device(device))
    if device == "cuda":
        return processor
    cpuinfo = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    model = found[1] if found else platform.machine()
    return f"{model} × {torch.get_num_threads()}, {processor}"


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
    if shutil.which("git") is None:
        return "unknown"
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"
