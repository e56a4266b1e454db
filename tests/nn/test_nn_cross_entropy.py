"""Every option of the cross-entropy: against its formula in float64, and against Liger's own.

Liger's kernel runs in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1kernels.nn import FusedLinearCrossEntropy
from r1kernels.nn.cross_entropy import CrossEntropyOutput

T, H, V = 9, 12, 37
WEIGHTS = torch.linspace(0.2, 2.5, V)
RETURNS = {"return_z_loss": True, "return_token_accuracy": True, "return_predicted_tokens": True}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"ce_weight": WEIGHTS},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.2, "ce_weight": WEIGHTS},
    {"label_smoothing": 0.1, "softcap": 3.0},
    {"lse_square_scale": 1e-2},
    {"lse_square_scale": 1e-2, "softcap": 3.0, "label_smoothing": 0.1, "ce_weight": WEIGHTS},
    {"use_token_scaling": True},
    {"use_token_scaling": True, "lse_square_scale": 1e-2, "label_smoothing": 0.1},
)
NAMES = ["+".join(options) or "plain" for options in OPTIONS]


def inputs(dtype: torch.dtype = torch.float32, rows: int = T) -> tuple[Tensor, ...]:
    """Weight, hidden, target and bias, as the module takes them."""
    rng = torch.Generator().manual_seed(4)
    weight, hidden = torch.randn(V, H, generator=rng) / 2, torch.randn(rows, H, generator=rng)
    bias, target = torch.randn(V, generator=rng), torch.randint(V, (rows,), generator=rng)
    target[1::4] = -100
    weight, hidden, bias = (x.to(dtype).requires_grad_() for x in (weight, hidden, bias))
    return weight, hidden, target, bias


def formula(
    weight: Tensor,
    hidden: Tensor,
    target: Tensor,
    bias: Tensor,
    ce_weight: Tensor | None = None,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    use_token_scaling: bool = False,
    **_: Any,
) -> CrossEntropyOutput:
    z = hidden @ weight.T + bias
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    counts = target != -100
    own = target.where(counts, 0)
    w = torch.ones(V) if ce_weight is None else ce_weight
    w = w.to(z)
    lse = z.logsumexp(-1)
    nll = lse - z.gather(-1, own[:, None])[:, 0]
    loss = (1 - label_smoothing) * w[own] * nll
    loss = loss + label_smoothing / V * (w * (lse[:, None] - z)).sum(-1)
    z_loss = lse_square_scale * lse**2
    if reduction == "mean":
        loss, z_loss = loss / (w[own] * counts).sum(), z_loss / counts.sum()
    loss = loss + z_loss
    if use_token_scaling:
        loss, z_loss = loss * (-nll.detach()).exp(), z_loss * (-nll.detach()).exp()
    best = z.argmax(-1)
    right = ((best == target) & counts).float()
    loss, z_loss = loss.where(counts, 0), z_loss.detach().where(counts, 0)
    if reduction != "none":
        loss, z_loss, right = loss.sum(), z_loss.sum(), right.sum() / counts.sum()
    return CrossEntropyOutput(loss, z_loss, right, best.where(counts, -1))


def result(output: Any, upstream: Tensor, of: tuple[Tensor, ...]) -> tuple[Any, ...]:
    gradients = torch.autograd.grad(output.loss, of, upstream, allow_unused=True)
    parts = (output.loss, output.z_loss, output.token_accuracy, output.predicted_tokens)
    return parts, gradients


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_formula(options: dict[str, Any], reduction: str, dtype: torch.dtype) -> None:
    weight, hidden, target, bias = inputs(dtype)
    options = options | RETURNS | {"reduction": reduction}
    found = FusedLinearCrossEntropy(**options)(weight, hidden, target, bias)
    expected = formula(weight, hidden, target, bias, **options)
    upstream = torch.randn_like(found.loss)
    of = (weight, hidden, bias)
    torch.testing.assert_close(
        result(found, upstream, of), result(expected, upstream, of), rtol=1e-4, atol=2e-6,
        check_dtype=False,
    )  # fmt: skip
    plain = FusedLinearCrossEntropy(**options | dict.fromkeys(RETURNS, False))
    assert torch.equal(plain(weight, hidden, target, bias), found.loss)


class Number(float):
    """Numbers are tensors in a kernel on a GPU, and Liger's casts some; in the interpreter not."""

    def to(self, dtype: Any) -> Number:
        return self


class Launcher:
    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        names = ("softcap", "sum_non_ignore_weight", "weight_sum")

        def launch(**given: Any) -> None:
            given |= {name: Number(given[name]) for name in names if given[name] is not None}
            self.kernel[grid](**given)

        return launch


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Any:
    transformers = pytest.importorskip("liger_kernel.transformers")
    module = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    if not torch.cuda.is_available():
        kernel = Launcher(module.liger_cross_entropy_kernel)
        monkeypatch.setattr(module, "liger_cross_entropy_kernel", kernel)
        # libdevice's is a GPU's.
        ours = importlib.import_module("r1kernels.triton.elementary")
        monkeypatch.setattr("liger_kernel.ops.cross_entropy.tanh", ours.tanh)
    return transformers.LigerFusedLinearCrossEntropyLoss


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_liger(options: dict[str, Any], reduction: str, liger: Any) -> None:
    weight, hidden, target, bias = inputs()
    options = options | RETURNS | {"reduction": reduction}
    results = []
    for kind in (FusedLinearCrossEntropy, liger):
        output = kind(**options)(weight, hidden, target, bias)
        results.append(result(output, 0.7 * torch.ones_like(output.loss), (weight, hidden, bias)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-6)


def test_what_was_not_asked_for_is_none() -> None:
    arguments = inputs()
    for name in RETURNS:
        output = FusedLinearCrossEntropy(**{name: True})(*arguments)
        given = {f"return_{part}" for part, value in vars(output).items() if value is not None}
        assert given == {name, "return_loss"}
        for part, value in vars(output).items():
            assert part == "loss" or value is None or not value.requires_grad


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_no_row_counts(options: dict[str, Any]) -> None:
    weight, hidden, target, bias = inputs()
    output = FusedLinearCrossEntropy(**options | RETURNS)(weight, hidden, target * 0 - 100, bias)
    assert output.loss == 0
    assert (output.predicted_tokens == -1).all()
    for gradient in torch.autograd.grad(output.loss, (weight, hidden, bias)):
        assert not gradient.any()


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_ignored_rows_may_hold_anything(options: dict[str, Any]) -> None:
    weight, hidden, target, bias = inputs()
    module = FusedLinearCrossEntropy(**options | RETURNS)
    expected = module(weight, hidden, target, bias)
    with torch.no_grad():
        hidden[target == -100] = float("nan")
    found = module(weight, hidden, target.int(), bias)
    assert vars(found).keys() == vars(expected).keys()
    torch.testing.assert_close(vars(found), vars(expected))
    for gradient in torch.autograd.grad(found.loss, (weight, hidden, bias)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_bfloat16_is_as_near_as_its_inputs_allow(options: dict[str, Any]) -> None:
    weight, hidden, target, bias = inputs(torch.bfloat16)
    found = FusedLinearCrossEntropy(**options)(weight, hidden, target, bias)
    assert found.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in (weight, hidden, bias)]
    expected = formula(*wide[:2], target, wide[2], **options).loss
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found, (weight, hidden, bias))
    for ours, exact in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert (ours.double() - exact).norm() < 0.01 * exact.norm()


class NoLogits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.dim() > 1:
                assert tuple(tensor.shape) != (64, V), func
        return output


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_the_logits_are_never_there_at_once(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1kernels.nn.logit_sums.BYTES", 4 * V * 5)
    weight, hidden, target, bias = inputs(rows=64)
    with NoLogits():
        output = FusedLinearCrossEntropy(**options | RETURNS)(weight, hidden, target, bias)
        output.loss.backward()
    expected = formula(weight, hidden, target, bias, **options)
    torch.testing.assert_close(output.loss, expected.loss)
    assert torch.equal(output.predicted_tokens, expected.predicted_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing: expected a number from 0 to 1, got 1.5"),
        ({"reduction": "max"}, "reduction: expected one of mean, sum, none"),
        ({"softcap": -1.0}, "softcap: expected"),
        ({"ce_weight": torch.ones(3, 2)}, r"ce_weight: expected shape \[V\]"),
        ({"ce_weight": torch.ones(V).long()}, "ce_weight: expected"),
        ({"ce_weight": torch.ones(V + 1)}, "ce_weight: expected V = 37 weights, got 38"),
        ({"accum_dtype": torch.bfloat16}, "accum_dtype: expected None or torch.float32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_errors(options: dict[str, Any], message: str) -> None:
    kinds = (ValueError, TypeError, NotImplementedError)
    with pytest.raises(kinds, match=f"FusedLinearCrossEntropy: {message}"):
        FusedLinearCrossEntropy(**options)(*inputs())
