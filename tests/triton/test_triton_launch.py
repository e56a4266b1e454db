"""Launches compile as they stand, without a GPU: sizes of one become compile-time constants there.

Neither the interpreter, which has no compile time, nor the builds, whose types are written by hand,
would notice what a call makes of its arguments.
"""

from __future__ import annotations

import pytest

from tests.compiled_triton import printed

pytest.importorskip("triton")

COMPILE_ONLY = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from r1kernels.core.op import OPS
from r1kernels.triton import handles, launch


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


driver.set_active(Driver())
launch.target = lambda device: "90"
run = JITFunction.run
JITFunction.run = lambda self, *args, grid, warmup, **kwargs: run(
    self, *args, grid=grid, warmup=True, **kwargs
)
handles.Launched._launch = lambda self, grid, *args, **options: self.jit.warmup(
    *args, grid=grid, **options
)
for op in OPS.values():
    if op.absent("triton") is None:
        for case in op.cases:
            if case.name.startswith("one "):
                op.implementations["triton"].run(*case.make("cpu"))
                print(op.name, case.name)
"""


def test_cases_of_size_one_compile_as_they_are_launched() -> None:
    compiled = printed("launches", "-c", COMPILE_ONLY)
    for name in ("logprob one row", "logprob_backward one row", "policy_loss one row"):
        assert name in compiled
