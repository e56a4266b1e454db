"""SHA-256 of what a run starts from and of what it leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

Checksums = Mapping[str, Sequence[int | str]]
"""Size and SHA-256 of files, by their names below a folder; a file by itself is "."."""


EVALUATIONS = ("suite", "harness")
"""Folders that `r1train eval` makes in that of a model: they are no part of it."""


def digest(path: Path) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """Of a file; of a folder, of its files' names and contents.

    A file that is neither larger nor newer than it was is not read again by this process.
    """
    if path.is_file():
        there = path.stat()
        return _remembered(path.resolve(), there.st_size, there.st_mtime_ns)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    # `r1train eval` writes its own there.
    files = [file for file in files if file.name != "eval.json"]
    if (path / "config.json").is_file():
        files = [file for file in files if file.relative_to(path).parts[0] not in EVALUATIONS]
    return digest_of_files(path, files)


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """Of the names and contents of files in a folder."""
    lines = (f"{file.relative_to(folder)}\0{digest_of(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _remembered(path: Path, size: int, changed: int) -> str:
    return digest(path)


def checksums(path: Path) -> dict[str, list[int | str]]:
    """What `fault` compares a file, or all files below a folder, with."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): [file.stat().st_size, digest(file)] for file in files}


def fault(path: Path, expected: Checksums) -> str | None:
    """Which file is not as it was written, and how; None where each is. Every file is read."""
    for name, (size, sha256) in expected.items():
        file = path / name
        said = file.relative_to(path.parent)
        if not file.is_file():
            return f"{said} is missing"
        if file.stat().st_size != size:
            return f"{said} has {file.stat().st_size} bytes instead of {size}"
        if digest(file) != sha256:
            return f"{said} is not what was written: its checksum differs"
    return None
