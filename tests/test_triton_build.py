"""Triton kernels compile without a GPU, keep everything in registers, use the matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.build_cache import ROOT, cached_build

triton = pytest.importorskip("triton")

# For each kernel and types of arguments one target and specialisation, each in its turn.
ONE_OF_EACH = """
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from r1kernels.triton.build import builds, report

alike = defaultdict(list)
for module, build, target in builds([]):
    alike[module, build.kernel.__name__, str(build.signature)].append((module, build, target))
chosen = [jobs[turn % len(jobs)] for turn, jobs in enumerate(alike.values())]
with ThreadPoolExecutor(2) as pool:
    for line in pool.map(lambda job: report(*job), chosen):
        print(json.dumps(line), flush=True)
"""


def verdicts(name: str, *program: str) -> list[dict[str, Any]]:
    def make(folder: Path) -> None:
        environment = {key: os.environ[key] for key in os.environ if key != "TRITON_INTERPRET"}
        run = subprocess.run(
            [sys.executable, *program], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        (folder / "verdicts.jsonl").write_text(run.stdout)

    sources = [
        path
        for folder in ("r1kernels/triton", "r1kernels/ops")
        for path in sorted((ROOT / folder).glob("*.*"))
    ]
    folder = cached_build(f"triton-{name}", [triton.__version__, *program, *sources], make)
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def check(lines: list[dict[str, Any]]) -> None:
    assert {line["target"] for line in lines} >= {80, 89, 90, 100, "gfx942"}
    assert not [line for line in lines if line["spills"] or line["missing"]]


def test_every_kernel_compiles_for_a_target_without_spills() -> None:
    check(verdicts("some", "-c", ONE_OF_EACH))


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_without_spills() -> None:
    check(verdicts("all", "-m", "r1kernels.triton.build"))
