"""The modules accept what code written for Liger gives them, and refuse what they do not honour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.nn import FusedLinearCrossEntropy, FusedLinearGRPOLoss

T, H, V = 7, 12, 31
B, LENGTH = 3, 5


def batch(**changes: Any) -> dict[str, Any]:
    mask = torch.arange(LENGTH) < torch.tensor([5, 3, 4])[:, None]
    return {
        "_input": torch.randn(B, LENGTH, H, requires_grad=True),
        "lin_weight": torch.randn(V, H, requires_grad=True),
        "selected_token_ids": torch.randint(V, (B, LENGTH)),
        "attention_mask": mask.long(),
        "advantages": torch.randn(B),
        **changes,
    }


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction: str) -> None:
    hidden, weight = torch.randn(T, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    bias, target = torch.randn(V, requires_grad=True), torch.randint(V, (T,))
    target[2] = -1
    module = FusedLinearCrossEntropy(ignore_index=-1, reduction=reduction, softcap=4.0)
    loss = module(weight, hidden, target, bias)
    z = 4 * torch.tanh((hidden @ weight.T + bias) / 4)
    expected = F.cross_entropy(z, target, ignore_index=-1, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    # Liger #1298: with reduction="none" the gradient of the weight ignored the upstream one.
    upstream = torch.randn_like(loss)
    inputs = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


def test_head_takes_the_dtype_of_the_hidden_states() -> None:
    args = batch(_input=torch.randn(B, LENGTH, H).bfloat16().requires_grad_())
    loss, _ = FusedLinearGRPOLoss(beta=0.0)(**args)
    loss.backward()
    assert args["lin_weight"].grad.dtype == torch.float32
    hidden = args["_input"][0]
    target = args["selected_token_ids"][0]
    FusedLinearCrossEntropy()(args["lin_weight"], hidden, target).backward()
    assert hidden.dtype == torch.bfloat16


def test_masked_tokens_may_be_anything() -> None:
    args = batch()
    expected, _ = FusedLinearGRPOLoss(beta=0.0)(**args)
    hidden_tokens = args["selected_token_ids"].where(args["attention_mask"].bool(), -100)
    old = torch.zeros(B, LENGTH).masked_fill(args["attention_mask"] == 0, float("nan"))
    loss, _ = FusedLinearGRPOLoss(beta=0.0)(**args | {"selected_token_ids": hidden_tokens})
    assert torch.equal(loss, expected)
    loss, _ = FusedLinearGRPOLoss(beta=0.0)(**args, old_per_token_logps=old)
    assert loss.isfinite()


def test_reference_head_equals_its_log_probabilities() -> None:
    args, other = batch(), torch.randn(V, H)
    ref = (args["_input"].detach() @ other.T).log_softmax(-1)
    ref = ref.gather(-1, args["selected_token_ids"][..., None])[..., 0]
    module = FusedLinearGRPOLoss(beta=0.1)
    by_logps = module(**args, ref_per_token_logps=ref)
    by_head = module(**args, ref_input=args["_input"], ref_weight=other)
    torch.testing.assert_close(by_head, by_logps)


def test_without_a_reference_the_kl_is_zero() -> None:
    args = batch()
    loss, (kl, _) = FusedLinearGRPOLoss(use_ref_model=False)(**args)
    without, _ = FusedLinearGRPOLoss(beta=0.0)(**args)
    assert kl == 0
    assert torch.equal(loss, without)


@pytest.mark.parametrize(
    ("constructor", "given", "message"),
    [
        ({"loss_type": "qrpo"}, {}, "loss_type: expected one of"),
        ({"importance_sampling_level": "word"}, {}, "importance_sampling_level"),
        ({}, {}, "ref_per_token_logps: expected it or ref_input.*got neither"),
        ({}, {"ref_input": torch.zeros(B, LENGTH, H)}, "ref_weight: expected a tensor"),
        ({"use_ref_model": False}, {"ref_per_token_logps": torch.zeros(B, LENGTH)}, "use_ref_mode"),
        ({"beta": 0.0}, {"vllm_is_ratio": torch.ones(B, 2)}, "vllm_is_ratio: expected shape"),
        ({"beta": 0.0}, {"attention_mask": torch.ones(B, 2)}, "attention_mask: expected T = 5"),
        ({"beta": 0.0}, {"_input": torch.zeros(B, H)}, r"_input: expected shape \[B, T, H\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors(constructor: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedLinearGRPOLoss(**constructor)(**batch(**given))


def test_liger_1082_the_sampling_ratio_reaches_the_gradient() -> None:
    args = batch()
    module = FusedLinearGRPOLoss(beta=0.0)
    (plain,) = torch.autograd.grad(module(**args)[0], args["lin_weight"])
    scaled = module(**args, vllm_is_ratio=torch.full((B,), 0.01))[0]
    (hundredth,) = torch.autograd.grad(scaled, args["lin_weight"])
    torch.testing.assert_close(hundredth, plain / 100)


@pytest.mark.parametrize("given", [20, 20.0, torch.tensor(20)])
def test_trl_5619_the_normaliser_is_that_of_the_whole_step(given: float | Tensor) -> None:
    args = batch()
    local = FusedLinearGRPOLoss(beta=0.0)(**args)[0]
    loss = FusedLinearGRPOLoss(beta=0.0)(**args, num_items_in_batch=given)[0]
    torch.testing.assert_close(loss, local * args["attention_mask"].sum() / 20)
