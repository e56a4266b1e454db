"""Every kernel can be captured in a CUDA graph, and a replay does what a call does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.__main__ import unavailable
from r1kernels.core.op import OPS, PREFERENCE, Case, Op
from r1kernels.testing.compare import as_tuple, bitwise_problems

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")


def captures() -> list[Any]:
    """Each op, implementation and case; the first case of each is not slow."""
    found = []
    for op in OPS.values():
        backends = PREFERENCE["cuda"] if torch.cuda.is_available() else ()
        for name in [name for backend in backends for name in op.named(backend)]:
            if unavailable(op, name) is None:
                cases = [case for case in op.cases if not case.bench]
                found += [
                    pytest.param(
                        op,
                        name,
                        case,
                        id=f"{op.name}-{name}-{case.name}",
                        marks=() if case is cases[0] else pytest.mark.slow,
                    )
                    for case in cases
                ]
    return found


@pytest.mark.parametrize(("op", "name", "case"), captures())
def test_a_replay_gives_what_a_call_gives(op: Op, name: str, case: Case) -> None:
    args = case.make("cuda")
    able = op.implementations[name].able(*args)
    if able is not True:
        pytest.skip(f"{name}: {able}")

    def results(given: tuple[Any, ...]) -> list[Tensor]:
        """What the op returns, and what it may have written to."""
        outputs = () if (found := op(*given)) is None else as_tuple(found)
        written = given if op.overload._schema.is_mutable else ()
        return [*outputs, *(arg for arg in written if isinstance(arg, Tensor))]

    with op.only(name):
        expected = results(copied(args))
        static = copied(args)
        with torch.cuda.stream(torch.cuda.Stream()):  # compiles and loads, which a graph may not
            results(copied(args))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(static)
        for kept, arg in zip(static, args, strict=True):
            if isinstance(arg, Tensor):
                kept.copy_(arg)
        for output in captured:
            if not any(output is arg for arg in static):
                output.zero_()
        graph.replay()
    torch.cuda.synchronize()
    for index, (got, wanted) in enumerate(zip(captured, expected, strict=True)):
        if index not in op.opaque:
            assert not bitwise_problems(got, wanted), f"output {index}"


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
