"""What each language needs: an interpreter or a compiler, and what these read."""

from __future__ import annotations

import os
import shutil
import site
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from r1train.sandbox.box import Box, Outcome, run_box
from r1train.sandbox.limits import Limits

LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64")
LINKER_CACHE = "/etc/ld.so.cache"
SYSTEM = ("/usr", "/bin", "/etc/alternatives")
COMPILER = Limits(cpu_seconds=30, memory_mb=3072, output_bytes=32 << 20, scratch_mb=128)


def python_box(
    files: Mapping[str, bytes], limits: Limits, main: str = "program.py", *arguments: str
) -> Box:
    """Runs a file of /box with this interpreter and its standard library alone."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefixes = (Path(interpreter).parents[1], Path(sys.base_prefix).resolve())
    own = (str(prefix / name) for prefix in prefixes for name in ("lib", "lib64"))
    folders, links = _visible((*LIBRARIES, LINKER_CACHE, interpreter, *own))
    return Box(
        argv=(interpreter, "-s", "-P", "-B", f"/box/{main}", *arguments),
        folders=folders,
        links=links,
        hidden=_packages(),
        files=files,
        limits=limits,
    )


def cpp_box(binary: bytes, limits: Limits) -> Box:
    """Runs a program that `compile_cpp` has made."""
    folders, links = _visible((*LIBRARIES, LINKER_CACHE))
    return Box(("/box/program",), folders, limits, {"program": binary}, links)


def compile_cpp(program: bytes) -> Outcome:
    """The compiler's end; what it made, if its status is 0, is its output."""
    compiler = os.path.realpath(compiler_path() or "/usr/bin/g++")
    own = str(Path(compiler).parents[1])
    folders, links = _visible((*LIBRARIES, *SYSTEM, LINKER_CACHE, own))
    script = '"$0" -std=gnu++17 -O2 -w -o /tmp/program /box/program.cpp >&2 && cat /tmp/program'
    return run_box(
        Box(
            argv=("/bin/sh", "-c", script, compiler),
            folders=folders,
            links=links,
            files={"program.cpp": program},
            limits=COMPILER,
            processes=True,
        )
    )


@cache
def compiler_path() -> str | None:
    """Of g++; None where there is none."""
    return shutil.which("g++")


@cache
def _packages() -> tuple[str, ...]:
    """Where packages are installed beside the standard library: what is there differs between
    machines, and a reward should not."""
    debian = f"{sys.base_prefix}/lib/python3/dist-packages"
    return tuple(dict.fromkeys((*site.getsitepackages([sys.base_prefix]), debian)))


def _visible(paths: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The folders and files of `paths` that are there, none inside another; and links among them
    with where they lead."""
    links: dict[str, str] = {}
    found: list[str] = []
    for path in paths:
        if os.path.islink(path):
            links[path] = os.readlink(path)
            path = os.path.realpath(path)
        if os.path.exists(path):
            found.append(path)
    kept = [
        path
        for path in dict.fromkeys(found)
        if not any(path != other and Path(path).is_relative_to(other) for other in found)
    ]
    links = {
        path: target
        for path, target in links.items()
        if not any(Path(path).is_relative_to(folder) for folder in kept)
    }
    return tuple(kept), links
