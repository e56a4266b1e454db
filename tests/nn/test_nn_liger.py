"""The same loss, metrics and gradients as Liger's own module, whose chunked loss runs on CPU.

Where they differ on purpose, a test says by how much and why.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.nn import FusedLinearCrossEntropy, FusedLinearGRPOLoss
from r1kernels.policy.losses import LOSSES

chunked_loss = pytest.importorskip("liger_kernel.chunked_loss")
Liger = chunked_loss.LigerFusedLinearGRPOLoss

B, LENGTH, H, V = 4, 6, 10, 33
BOTH = [
    (loss_type, level)
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
    for level in ("token", "sequence")
    if loss_type in LOSSES and (level == "token" or loss_type not in ("cispo", "sapo", "vespo"))
]


def batch(lengths: tuple[int, ...] = (6, 3, 1, 4)) -> dict[str, Tensor]:
    hidden, weight, bias = torch.randn(B, LENGTH, H), torch.randn(V, H) / 3, torch.randn(V) / 3
    ids = torch.randint(V, (B, LENGTH))
    logps = (hidden @ weight.T + bias).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return {
        "_input": hidden.requires_grad_(),
        "lin_weight": weight.requires_grad_(),
        "selected_token_ids": ids,
        "attention_mask": (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long(),
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.1]),
        "bias": bias.requires_grad_(),
        "ref_per_token_logps": logps.detach() + 0.4 * torch.randn(B, LENGTH),
        "old_per_token_logps": logps.detach() + 0.4 * torch.randn(B, LENGTH),
    }


def run(
    module: type[torch.nn.Module], options: dict[str, Any], args: dict[str, Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    loss, metrics = module(**options)(**args)
    inputs = [args[name] for name in ("_input", "lin_weight", "bias")]
    return loss.detach(), metrics, torch.autograd.grad(2 * loss, inputs)


def options(loss_type: str, level: str, **changes: Any) -> dict[str, Any]:
    return {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "epsilon_high": 1.1 if loss_type == "cispo" else 0.28,
        "max_completion_length": 8,
        "temperature": 0.8,
        "compiled": False,
        **changes,
    }


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(reduction: str) -> None:
    """Liger's Triton kernel, in the interpreter where there is no GPU."""
    liger = pytest.importorskip("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight, bias = (torch.randn(n, device=device) for n in ((7, H), (V, H), (V,)))
    inputs = [x.requires_grad_() for x in (weight, hidden, bias)]
    target = torch.randint(V, (7,), device=device)
    target[3] = -100
    results = []
    for module in (FusedLinearCrossEntropy, liger):
        loss = module(reduction=reduction)(weight, hidden, target, bias)
        results.append((loss.detach(), torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def signature(call: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(call).parameters.values()]


def test_the_same_arguments_in_the_same_order() -> None:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    for ours, theirs in (
        (FusedLinearGRPOLoss, Liger),
        (FusedLinearCrossEntropy, LigerFusedLinearCrossEntropyLoss),
    ):
        assert signature(ours) == signature(theirs)
        assert signature(ours.forward) == signature(theirs.forward)


@pytest.mark.parametrize(("loss_type", "level"), BOTH)
def test_loss_metrics_and_gradients(loss_type: str, level: str) -> None:
    args = batch()
    changes = {"beta": 0.04}
    if loss_type == "luspo":
        changes = {"beta": 0.0}
        if level == "token":  # Liger counts padding; see below
            args["attention_mask"] = torch.ones(B, LENGTH).long()
    if loss_type == "cispo":  # Liger's metric leaves capped tokens of negative advantages out
        args["advantages"] = args["advantages"].abs()
    chosen = options(loss_type, level, **changes)
    torch.testing.assert_close(
        run(FusedLinearGRPOLoss, chosen, args), run(Liger, chosen, args), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("changes", [{"delta": 1.4}, {"beta": 0.0}, {"use_bias_correction_kl": 1}])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_options(level: str, changes: dict[str, Any]) -> None:
    args = batch()
    chosen = options("dapo", level, **changes)
    loss, metrics, gradients = run(FusedLinearGRPOLoss, chosen, args)
    expected_loss, expected_metrics, expected_gradients = run(Liger, chosen, args)
    torch.testing.assert_close(
        (loss, gradients), (expected_loss, expected_gradients), rtol=1e-5, atol=1e-6
    )
    assert len(metrics) == len(expected_metrics)


@pytest.mark.parametrize("shape", [(B,), (B, 1), (B, LENGTH)], ids=str)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo", "vespo", "vespo on-policy"])
def test_sampling_ratio(loss_type: str, shape: tuple[int, ...]) -> None:
    args = batch() | {"vllm_is_ratio": torch.rand(shape) * 1.5}
    loss_type, _, on_policy = loss_type.partition(" ")
    if loss_type == "vespo":  # its sequences' ratios are products, padding's weights included
        args["vllm_is_ratio"] = 0.7 + torch.rand(shape) * 0.5
    if on_policy:
        del args["old_per_token_logps"]
    chosen = options(loss_type, "token", beta=0.04)
    ours, theirs = run(FusedLinearGRPOLoss, chosen, args), run(Liger, chosen, args)
    torch.testing.assert_close((ours[0], ours[2]), (theirs[0], theirs[2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
@pytest.mark.parametrize("module", [FusedLinearGRPOLoss, Liger])
def test_both_refuse_these_at_the_level_of_the_sequence(module: Any, loss_type: str) -> None:
    loss = module(**options(loss_type, "sequence"))
    with pytest.raises(ValueError, match="Sequence-level importance sampling is not supported"):
        loss(**batch())


def test_reference_from_its_head() -> None:
    args = batch() | {"ref_input": torch.randn(B, LENGTH, H), "ref_weight": torch.randn(V, H)}
    args |= {"ref_bias": torch.randn(V), "ref_per_token_logps": None}
    chosen = options("grpo", "token")
    torch.testing.assert_close(
        run(FusedLinearGRPOLoss, chosen, args), run(Liger, chosen, args), rtol=1e-5, atol=1e-6
    )


def test_cispo_metric_counts_capped_tokens_of_both_signs() -> None:
    """Liger's leaves negative advantages out, whose gradient the cap bounds all the same."""
    args, chosen = batch(), options("cispo", "token", beta=0.0)
    (ours,), (theirs,) = (run(m, chosen, args)[1] for m in (FusedLinearGRPOLoss, Liger))
    args["advantages"] = args["advantages"].clamp(max=0)
    (negative,) = run(FusedLinearGRPOLoss, chosen, args)[1]
    torch.testing.assert_close(ours, theirs + negative)
