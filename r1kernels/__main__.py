"""``python -m r1kernels``: which op runs on which backend here, and why not on the others."""

from __future__ import annotations

import platform
import textwrap
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

import torch

import r1kernels
from r1kernels import triton
from r1kernels.core import native
from r1kernels.core.op import OPS, PREFERENCE, Op

WIDTH = 80
BACKENDS = ("torch", *chain.from_iterable(reversed(PREFERENCE.values())))


def table() -> str:
    """Versions, devices, and each op × backend: "yes", or the number of a reason below."""
    reasons: dict[str, int] = {}
    rows = [("op", *BACKENDS)]

    def mark(reason: str | None) -> str:
        return "yes" if reason is None else f"[{reasons.setdefault(reason, len(reasons) + 1)}]"

    for op in OPS.values():
        rows.append((op.name, *(mark(unavailable(op, backend)) for backend in BACKENDS)))
        for one in [op.implementations[n] for backend in BACKENDS for n in op.named(backend)]:
            if one.variant:
                marks = [
                    mark(unavailable(op, one.name)) if b == one.backend else "" for b in BACKENDS
                ]
                rows.append((f"  {one.name}", *marks))
    name_width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{name_width}}" + "".join(f"  {cell:6}" for cell in row[1:]) for row in rows]
    notes = [
        textwrap.fill(f"[{number}] {reason}", WIDTH, subsequent_indent="    ")
        for reason, number in reasons.items()
    ]
    return "\n".join(line.rstrip() for line in (*header(), "", *lines, "", *notes)).rstrip()


def header() -> list[str]:
    found = [f"r1kernels {r1kernels.__version__}"]
    found += [f"{name} {_version(name)}" for name in ("torch", "triton", "transformers")]
    python = f"python {platform.python_version()}"
    devices = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads, C++ {isa()}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        arch = native.architecture(torch.device("cuda", index))
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        devices.append(f"cuda:{index}: {properties.name}, {arch}, {memory}")
    return [" · ".join((found[0], python)), " · ".join(found[1:]), *devices]


def isa() -> str:
    """The instruction set that the C++ kernels use here."""
    return str(torch.ops.r1_cpp.isa()) if native.load("cpp") is None else "kernels absent"


def unavailable(op: Op, name: str) -> str | None:
    """Why ``op`` can never run on a backend, or one variant of it, on this machine, or None."""
    backend, _, variant = name.partition(":")
    compiled = backend in native.DEVICE
    if compiled and (reason := native.load(backend)) is not None:
        return reason
    kernel = native.kernel_name(op.name, variant)
    if op.absent(name) or (compiled and native.absent(backend, kernel)):
        return f"no {name} kernel of this op"
    interpreted = backend == "triton" and triton.INTERPRETED
    if backend in PREFERENCE["cuda"] and not (torch.cuda.is_available() or interpreted):
        return "PyTorch sees no CUDA device"
    archs = op.implementations[name].archs if variant else ()
    here = {native.architecture(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    if archs and here and here.isdisjoint(archs):
        return f"{name} is for {' and '.join(archs)}"
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


if __name__ == "__main__":
    print(table())
