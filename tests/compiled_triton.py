"""Programs that compile the Triton kernels instead of interpreting them, and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.build_cache import ROOT, cached_build


def printed(name: str, *program: str) -> str:
    """What ``python *program`` prints: run again only when a kernel, or ``program``, changes."""

    def make(folder: Path) -> None:
        environment = {key: os.environ[key] for key in os.environ if key != "TRITON_INTERPRET"}
        run = subprocess.run(
            [sys.executable, *program], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        (folder / "printed").write_text(run.stdout)

    families = [path.parent for path in (ROOT / "r1kernels").glob("*/triton")]
    sources = [
        path
        for folder in (ROOT / "r1kernels/triton", *sorted(families))
        for suffix in ("*.py", "*.json")
        for path in sorted(folder.rglob(suffix))
    ]
    folder = cached_build(f"triton-{name}", [version("triton"), *program, *sources], make)
    return (folder / "printed").read_text()
