"""rms_norm against the norms of transformers, and what it keeps for its backward pass."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r1kernels
from r1kernels.__main__ import unavailable
from r1kernels.elementwise.rms_norm import RMS_NORM
from tests.roundings import assert_same_but_last_bits, saved_by

BACKENDS = [b for b in ("torch", "cpp") if unavailable(RMS_NORM, b) is None]
GEMMA = {"offset": 1.0, "round_before_weight": False}
# The module of each family, and the options that say the same.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaRMSNorm", {}),
    "qwen3": ("Qwen3RMSNorm", {}),
    "mixtral": ("MixtralRMSNorm", {}),
    "gemma2": ("Gemma2RMSNorm", GEMMA),
    "gemma3": ("Gemma3RMSNorm", GEMMA),
    "olmo2": ("Olmo2RMSNorm", {"round_before_weight": False}),
}


def norm_of(family: str, width: int, dtype: torch.dtype) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    module = import_module(f"{transformers.__name__}.models.{family}.modeling_{family}")
    norm: nn.Module = getattr(module, FAMILIES[family][0])(width, eps=1e-5).to(dtype)
    nn.init.normal_(norm.weight, std=0.3)
    return norm


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(3)
    upstream = [torch.randn(out.shape, generator=rng).to(out) for out in outputs]
    return torch.autograd.grad(outputs, inputs, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 17, 128), (2, 9, 4, 64)], ids=["rows", "heads"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_norm_of_the_family(
    family: str, residual: bool, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    """The reference bit for bit; kernels add the squares in another order than PyTorch."""
    torch.manual_seed(0)
    norm = norm_of(family, shape[-1], dtype)
    x, added = torch.randn(2, *shape).to(dtype).requires_grad_()
    inputs = [x, added, norm.weight] if residual else [x, norm.weight]
    h = x + added if residual else x
    expected = (norm(h), h) if residual else (norm(h),)
    given = (x, norm.weight, added) if residual else (x, norm.weight)
    with r1kernels.using(backend):
        found = r1kernels.rms_norm(*given, eps=1e-5, **FAMILIES[family][1])
        found = found if residual else (found,)
        slopes = gradients(found, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        if backend == "torch":
            assert torch.equal(ours, theirs)
        assert_same_but_last_bits(ours, theirs)
    # The weight's gradient is rounded once, where autograd rounds every product.
    *of_rows, of_weight = gradients(expected, inputs)
    for ours, theirs in zip(slopes, of_rows, strict=False):
        assert_same_but_last_bits(ours, theirs)
    error = (slopes[-1] - of_weight).abs().max() / of_weight.abs().max()
    assert error < (0.02 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("options", [{}, GEMMA], ids=["Llama", "Gemma"])
def test_gradcheck(options: dict[str, Any]) -> None:
    x, residual = torch.randn(2, 3, 2, 5, dtype=torch.float64).unbind()
    weight = torch.randn(5, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, residual)]
    norm = partial(r1kernels.rms_norm, **options)
    assert torch.autograd.gradcheck(norm, inputs)
    assert torch.autograd.gradcheck(norm, inputs[:2])
    assert torch.autograd.gradcheck(lambda *given: norm(*given)[0], inputs)
    assert torch.autograd.gradcheck(lambda *given: norm(*given)[1], inputs)


@pytest.mark.parametrize("residual", [False, True])
def test_the_backward_pass_keeps_the_rows_the_weight_and_a_number_a_row(residual: bool) -> None:
    x, added = torch.randn(2, 6, 32).unbind()
    weight = torch.randn(32, requires_grad=True)
    x.requires_grad_()
    found = r1kernels.rms_norm(x, weight, added if residual else None)
    y, rows = found if residual else (found, x)
    kept = saved_by(y)
    assert sum(tensor.numel() for tensor in kept) == rows.numel() + weight.numel() + len(rows)
    assert rows.data_ptr() in {tensor.data_ptr() for tensor in kept}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual, dy, dh = torch.randn(4, 100, 72).to(dtype).unbind()
    weight = torch.randn(72).to(dtype)
    whole: list[Tensor] = []
    for keep in (100, 1, 37):
        rows, added = (t[:keep].clone().requires_grad_() for t in (x, residual))
        with r1kernels.using(backend):
            y, h = r1kernels.rms_norm(rows, weight, added)
            slopes = torch.autograd.grad((y, h), (rows, added), (dy[:keep], dh[:keep]))
        found = [y, h, *slopes]
        whole = whole or found
        for part, all_rows in zip(found, whole, strict=True):
            assert torch.equal(part, all_rows[:keep])


def test_what_is_not_wanted_is_not_made() -> None:
    x, weight, residual = torch.randn(4, 8), torch.randn(8), torch.randn(4, 8).requires_grad_()
    y, h = r1kernels.rms_norm(x, weight, residual)
    (only_h,) = torch.autograd.grad(h.sum(), residual, retain_graph=True)
    assert torch.equal(only_h, torch.ones(4, 8))
    (of_y,) = torch.autograd.grad(y.sum(), residual)
    frozen = r1kernels.elementwise.rms_norm.RMS_NORM_BACKWARD(
        torch.ones(4, 8), None, h.detach(), weight, h.detach().pow(2).mean(-1).add(1e-6).rsqrt(),
        0.0, True, False,
    )  # fmt: skip
    assert frozen[1].numel() == 0
    torch.testing.assert_close(frozen[0], of_y)


def test_it_compiles_whole_with_its_gradient() -> None:
    def loss(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        y, h = r1kernels.rms_norm(x, weight, residual)
        return (y * h).sum()

    torch.compiler.reset()
    inputs = [torch.randn(3, 5, 16), torch.randn(16), torch.randn(3, 5, 16)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*inputs), inputs),
        torch.autograd.grad(loss(*inputs), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_with_a_nan_stays_visible_and_alone(backend: str) -> None:
    x, weight = torch.randn(4, 40), torch.randn(40, requires_grad=True)
    x[2, 7] = torch.nan
    x.requires_grad_()
    with r1kernels.using(backend):
        y = r1kernels.rms_norm(x, weight)
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    for rows in (y, dx):
        assert rows.isnan().all(1).tolist() == [False, False, True, False]
        assert rows.isnan().any(1).tolist() == [False, False, True, False]
    assert dweight.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "rms_norm: eps: expected a number above 0, got 0"),
        ({"weight": torch.ones(5)}, r"weight: expected H = 4 in shape \[H\], got \[5\]"),
        ({"residual": torch.ones(3, 4)}, r"residual: expected N1 = 2 in shape \[N1, H\]"),
        ({"residual": torch.ones(4)}, r"residual: .*got \[4\] \(the shape of x\)"),
        ({"x": torch.tensor(1.0)}, r"x: expected shape \[…, H\], got \[\]"),
    ],
)
def test_what_is_said_of_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        r1kernels.rms_norm(**{"x": torch.ones(2, 4), "weight": torch.ones(4), **change})
