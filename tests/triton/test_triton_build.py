"""Triton kernels compile without a GPU, keep everything in registers, use the matrix units."""

from __future__ import annotations

import json

import pytest

from tests.compiled_triton import printed

pytest.importorskip("triton")

# For each kernel and types of arguments one target and specialisation, each in its turn.
ONE_OF_EACH = """
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from r1kernels.triton.build import builds, report

alike = defaultdict(list)
for module, build, target in builds():
    alike[module, build.kernel.__name__, str(build.signature)].append((module, build, target))
chosen = [jobs[turn % len(jobs)] for turn, jobs in enumerate(alike.values())]
with ThreadPoolExecutor(2) as pool:
    for line in pool.map(lambda job: report(*job), chosen):
        print(json.dumps(line), flush=True)
"""


def check(verdicts: str) -> None:
    lines = [json.loads(line) for line in verdicts.splitlines()]
    assert {line["target"] for line in lines} >= {80, 89, 90, 100, "gfx942"}
    assert not [line for line in lines if line["spills"] or line["missing"]]


def test_every_kernel_compiles_for_a_target_without_spills() -> None:
    check(printed("some-builds", "-c", ONE_OF_EACH))


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_without_spills() -> None:
    check(printed("all-builds", "-m", "r1kernels.triton.build"))
