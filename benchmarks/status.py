"""Which kernels have no record of their present source.

A kernel's source is found by following ``#include`` and ``import`` from its own files, so that a
shared header, a launch table or the definition of the losses makes old what is built from it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks import record
from benchmarks.record import ROOT
from r1kernels.core import native
from r1kernels.core.op import OPS, PREFERENCE, Op

BACKENDS = ("cpp", "cuda", "triton")
FOLDERS = {"cpp": "csrc/cpu", "cuda": "csrc/cuda"}
# An import of these does not count: what all ops stand on does not decide a kernel's speed.
NOT_FOLLOWED = "r1kernels.core"
INCLUDE = re.compile(r'^\s*#include "([\w/.]+)"', re.MULTILINE)


def sources(op: Op, name: str) -> list[Path]:
    """The files that make an implementation of ``op``; empty when there is none."""
    backend, _, variant = name.partition(":")
    kernel = native.kernel_name(op.name, variant)
    roots = _triton(op) if backend == "triton" else _native(kernel, ROOT / FOLDERS[backend])
    if not roots:
        return []
    declared = [p for p in (ROOT / "r1kernels").glob("*/*.py") if f'"{op.name}(' in p.read_text()]
    waiting = [path.relative_to(ROOT) for path in (*roots, *declared)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and (ROOT / path).is_file():
            found.add(path)
            waiting += _needs(path)
    return sorted(found)


def source_hash(op: Op, name: str) -> str:
    """Of the kernel's files, or "" for what is no kernel of this repository."""
    if name.partition(":")[0] not in BACKENDS:
        return ""
    digest = hashlib.sha256()
    for path in sources(op, name):
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()[:12]


def lines() -> list[str]:
    """One line for each implementation whose speed is unknown, or known of older source only."""
    newest_last = sorted(record.load(), key=lambda one: one["date"])
    records = {(r["op"], r["implementation"], r["case"], r["kind"]): r for r in newest_last}
    found = []
    for op in OPS.values():
        for kind, backends in reversed(PREFERENCE.items()):
            cases = [case.name for case in op.cases if case.timed_on(kind)]
            for name in [name for backend in backends for name in op.named(backend) or (backend,)]:
                if not cases or not sources(op, name):
                    continue
                known = [records.get((op.name, name, case, kind)) for case in cases]
                if problem := _problem(known, source_hash(op, name)):
                    found.append(f"{op.name} × {name}: {problem}")
    return found


def _problem(known: list[dict | None], source: str) -> str | None:
    """The first of these that is so; a kernel may decline a case, but not all of them."""
    there = [one for one in known if one is not None]
    if not there:
        return "no record"
    if any(one["source"] != source for one in there):
        return "older source"
    if any(one["seconds"] is None for one in there):
        return "wrong result"
    return None


def _triton(op: Op) -> list[Path]:
    module = op.modules.get("triton")
    return [] if module is None else [ROOT.joinpath(*module.split(".")).with_suffix(".py")]


def _native(kernel: str, folder: Path) -> list[Path]:
    """The files that register a kernel, and what is linked with them but included by nothing."""
    registers = re.compile(rf'impl\(\s*"{kernel}"')
    found = [p for p in sorted(folder.rglob("*.c*")) if registers.search(p.read_text())]
    # Beside logprob.cu, logprob_sm90.cu.
    return [other for one in found for other in sorted(one.parent.glob(f"{one.stem}*"))]


@cache  # a header is part of many kernels
def _needs(path: Path) -> tuple[Path, ...]:
    return tuple(_parts(path))


def _parts(path: Path) -> Iterator[Path]:
    """Where that lies which a file includes, imports or has as data beside it; not all exists."""
    text = (ROOT / path).read_text()
    if path.suffix != ".py":
        for name in INCLUDE.findall(text):
            yield from (Path("csrc") / name, path.parent / name)
        return
    yield path.with_suffix(".json")
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module.startswith("r1kernels.") and not module.startswith(NOT_FOLLOWED):
                yield Path(*module.split(".")).with_suffix(".py")
