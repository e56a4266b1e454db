"""What the cases of ``policy_loss`` and ``group_advantage`` cannot see of the Triton kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from r1kernels import triton
from r1kernels.core.op import Case, Op
from r1kernels.policy.group_advantage import GROUP_ADVANTAGE
from r1kernels.policy.policy_loss import POLICY_LOSS
from r1kernels.policy.policy_loss_cases import CASES
from r1kernels.policy.policy_loss_reference import Arguments
from r1kernels.testing.compare import Truth, bitwise_problems

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)


def arguments(name: str) -> Arguments:
    return Arguments(*next(case for case in CASES if case.name == name).make(DEVICE))


def problems(a: Arguments) -> tuple[str, ...]:
    case = Case("here", lambda device: tuple(a))
    with POLICY_LOSS.using("triton"):
        return Truth(POLICY_LOSS, case, a).check("triton", POLICY_LOSS(*a)).problems


@pytest.mark.parametrize("name", ["grpo everything", "gspo everything", "vespo everything"])
def test_sequences_of_more_than_one_block(name: str) -> None:
    a = arguments(name)
    lengths = torch.tensor([0, 700, 0, 1300, 0, 513])
    rows = int(lengths.sum())
    noise = torch.rand(rows)

    def longer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape != a.logprob.shape:
            return value
        values = value.repeat(-(-rows // len(value)))[:rows]
        return values if value.dtype == torch.bool else values + 0.1 * noise.to(values)

    a = a._replace(**{key: longer(value) for key, value in a._asdict().items()})
    assert not problems(a._replace(cu_seqlens=lengths.cumsum(0).to(DEVICE)))


@pytest.mark.parametrize("name", ["dapo everything", "grpo everything"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_totals_of_this_call_under_a_mask(name: str, share: float) -> None:
    a = arguments(name)
    mask = torch.rand(len(a.logprob)).to(DEVICE) < share
    assert not problems(a._replace(denominator=None, num_active_tokens=None, mask=mask))


def test_a_sampler_that_is_only_measured_is_not_corrected_for() -> None:
    assert not problems(arguments("vespo everything")._replace(rollout_correction="none"))


def test_a_log_probability_that_is_nan_is_not_hidden() -> None:
    a = arguments("grpo")
    a.logprob[30] = torch.nan
    with POLICY_LOSS.using("triton"):
        loss, grad, *_ = POLICY_LOSS(*a)
    assert loss.isnan()
    assert grad.isnan().nonzero().flatten().tolist() == [30]


def backend(op: Op) -> Any:
    assert op.absent("triton") is None
    return op.implementations["triton"].run


@pytest.mark.parametrize("baseline", ["mean", "rloo", "opo"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_advantages_do_not_depend_on_the_order_of_the_batch(scale: str, baseline: str) -> None:
    """Numbers whose float64 sums differ by order: 40 powers of ten apart."""
    rewards = torch.randn(40) * 10.0 ** torch.randint(-20, 20, (40,))
    ids = torch.randint(3, (40,))
    lengths = torch.rand(40) if baseline == "opo" else None
    order = torch.randperm(40)

    def run(at: torch.Tensor) -> torch.Tensor:
        own = None if lengths is None else lengths[at].to(DEVICE)
        tensors = rewards[at].to(DEVICE), ids[at].to(DEVICE), own
        return backend(GROUP_ADVANTAGE)(*tensors, scale, baseline, 1e-4)

    assert not bitwise_problems(run(order), run(torch.arange(40))[order])


def test_a_reward_that_is_nan_is_not_hidden() -> None:
    rewards = torch.tensor([1.0, torch.nan, 1.0, 0.0, 1.0], device=DEVICE)
    ids = torch.tensor([0, 0, 0, 1, 1], device=DEVICE)
    got = backend(GROUP_ADVANTAGE)(rewards, ids, None, "group", "mean", 1e-4)
    assert got.isnan().tolist() == [True, True, True, False, False]
