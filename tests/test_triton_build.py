"""Triton kernels compile without a GPU, keep everything in registers, use the matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def test_every_kernel_compiles_for_every_target_without_spills() -> None:
    environment = {key: os.environ[key] for key in os.environ if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "r1kernels.triton.build"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines
    assert not [line for line in lines if line["spills"] or line["missing"]]
