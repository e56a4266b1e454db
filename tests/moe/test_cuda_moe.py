"""moe_route, its gradient and moe_sort in CUDA C++; on the emulator three blocks run together."""

from __future__ import annotations

import pytest
import torch

from r1kernels.core.op import OPS, Case, Op
from r1kernels.moe import route
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels

CASES = [
    pytest.param(OPS[name], case, id=f"{name}-{case.name}")
    for name in ("moe_sort", "moe_route", "moe_route_backward")
    for case in OPS[name].cases
    if not case.bench
]
CASES += [
    pytest.param(route.MOE_ROUTE, case, id=f"moe_route-{case.name}, strange")
    for case in route.STRANGE
]
# No kernel here depends on the architecture.
pytestmark = pytest.mark.parametrize(
    "kernels", ["gpu" if torch.cuda.is_available() else "sm_80"], indirect=True
)
# Score, order, bias, groups, best groups, normalise, scale, replay, num_valid, align.
PLAIN = ("sigmoid", "score_first", None, 1, 1, True, 1.0, None, None, 1)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_the_reference(kernels: Kernels, op: Op, case: Case) -> None:
    args = case.make(kernels.device)
    with poisoned():
        outputs = as_tuple(getattr(kernels.ops, op.name)(*args))
    assert not Truth(op, case, args).check("cuda", outputs).problems


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("tokens", [97, 301])
def test_several_turns_of_several_blocks(kernels: Kernels, tokens: int, align: int) -> None:
    ids = torch.randint(0, 12, (tokens, 5), generator=torch.Generator().manual_seed(tokens))
    args = ids.to(kernels.device), 11, align  # 11 stands for none
    for got, expected in zip(
        kernels.ops.moe_sort(*args),
        OPS["moe_sort"].implementations["torch"].run(*args),
        strict=True,
    ):
        assert not bitwise_problems(got, expected)


def test_groups_that_do_not_divide_a_warp(kernels: Kernels) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(70, 60, generator=rng).to(kernels.device)
    bias = torch.randn(60, generator=rng).to(kernels.device)
    args = (logits, 7, "sigmoid", "score_first", bias, 3, 2, True, 1.0, None, None, 8)
    reference = OPS["moe_route"].implementations["torch"].run(*args)
    for got, expected in zip(kernels.ops.moe_route(*args)[1:], reference[1:], strict=True):
        assert not bitwise_problems(got, expected)


def test_an_expert_named_twice_gets_both_gradients(kernels: Kernels) -> None:
    op = OPS["moe_route_backward"]
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).to(kernels.device)
    ids = torch.tensor([[4, 4, 1], [8, 0, 8], [2, 2, 2]], device=kernels.device)
    grad = torch.arange(1.0, 10.0).view(3, 3).to(kernels.device)
    args = grad, logits, ids, "softmax", "score_first", True, 1.0
    case = Case("twice", lambda device: args)
    assert not Truth(op, case, args).check("cuda", kernels.ops.moe_route_backward(*args)).problems


def test_errors_name_the_argument(kernels: Kernels) -> None:
    logits = torch.zeros(2, 66, device=kernels.device)
    with pytest.raises(RuntimeError, match="moe_route: top_k: expected 1 to 32 on CUDA, got 33"):
        kernels.ops.moe_route(logits, 33, *PLAIN)
    grouped = (*PLAIN[:3], 33, 33, *PLAIN[5:])
    with pytest.raises(RuntimeError, match="moe_route: num_groups: expected 1 to 32 on CUDA"):
        kernels.ops.moe_route(logits, 2, *grouped)
