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
from r1kernels.op import OPS, PREFERENCE, Op

FOLDERS = {"cpp": "csrc/cpu", "cuda": "csrc/cuda", "triton": "r1kernels/triton"}
# What an import must lead to, to count: the rest of the package does not decide a kernel's speed.
FOLLOWED = ("r1kernels.ops", "r1kernels.triton")
INCLUDE = re.compile(r'^\s*#include "([\w/.]+)"', re.MULTILINE)


def sources(op: Op, backend: str) -> list[Path]:
    """The files that make ``op`` on ``backend``; empty when it has no kernel there."""
    made = re.compile(
        rf'^def {op.name}\(|impl\(\s*"{op.name}"|plug_in\(\s*{op.name.upper()}\b', re.MULTILINE
    )
    folder = sorted((ROOT / FOLDERS[backend]).glob("*.*"))
    roots = [path for path in folder if made.search(path.read_text())]
    if not roots:
        return []
    # Beside logprob.cu, logprob_sm90.cu: linked with it, and included by nothing.
    beside = [path for path in folder if path.stem.startswith(tuple(p.stem for p in roots))]
    declared = [p for p in (ROOT / "r1kernels/ops").glob("*.py") if f'"{op.name}(' in p.read_text()]
    waiting = [path.relative_to(ROOT) for path in (*beside, *declared)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and (ROOT / path).is_file():
            found.add(path)
            waiting += _needs(path)
    return sorted(found)


def source_hash(op: Op, backend: str) -> str:
    """Of the kernel's files, or "" for what is no kernel of this repository."""
    if backend not in FOLDERS:
        return ""
    digest = hashlib.sha256()
    for path in sources(op, backend):
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()[:12]


def lines() -> list[str]:
    """One line for each op × backend whose speed is unknown, or known of older source only."""
    newest_last = sorted(record.load(), key=lambda one: one["date"])
    records = {(r["op"], r["implementation"], r["case"], r["kind"]): r for r in newest_last}
    found = []
    for op in OPS.values():
        for kind, backends in reversed(PREFERENCE.items()):
            cases = [case.name for case in op.cases if case.timed_on(kind)]
            for backend in backends:
                if not cases or not sources(op, backend):
                    continue
                known = [records.get((op.name, backend, case, kind)) for case in cases]
                if problem := _problem(known, source_hash(op, backend)):
                    found.append(f"{op.name} × {backend}: {problem}")
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
            if module.startswith(FOLLOWED):
                yield Path(*module.split(".")).with_suffix(".py")
