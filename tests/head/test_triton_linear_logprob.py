"""linear_logprob in Triton: what is kept, in what memory, for which rows. Parity is in test_ops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import r1kernels
from r1kernels import triton
from r1kernels.head import kept_memory
from r1kernels.head import linear_logprob as module
from r1kernels.head.linear_logprob_op import tile_row_bytes
from r1kernels.testing.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not (triton.INTERPRETED or DEVICE == "cuda"), reason="needs a GPU or TRITON_INTERPRET=1"
)
OPTIONS = {
    "plain": {},
    "bias": {"bias": True, "temperature": 0.7, "logit_scale": 1.5},
    "softcap": {"softcap": 2.0, "temperature": 1.3},
    "entropy": {"entropy": True},
}


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    with r1kernels.using("triton"), poisoned():
        yield


@pytest.fixture
def kernels() -> Any:
    from r1kernels.head.triton import linear_logprob

    return linear_logprob


def problem(
    rows: int, dtype: torch.dtype = torch.float32, columns: int = 270
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 40, generator=rng).to(DEVICE, dtype)
    weight = (torch.randn(columns, 40, generator=rng) / 3).to(DEVICE, dtype)
    target = torch.randint(columns, (rows,), generator=rng).to(DEVICE)
    return hidden.requires_grad_(), weight.requires_grad_(), target


def gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, options: dict[str, Any], skip: int = 7
) -> list[Tensor]:
    """Outputs, then gradients for an upstream gradient that is zero in every ``skip``-th row."""
    options = dict(options)
    leaves = [hidden, weight]
    if options.pop("bias", False):
        options["bias"] = torch.linspace(-1, 1, len(weight)).to(hidden).detach()
        options["bias"].requires_grad_(weight.requires_grad)
        leaves.append(options["bias"])
    out = [t for t in r1kernels.linear_logprob(hidden, weight, target, **options) if t is not None]
    upstream = torch.linspace(-1, 2, 200, device=DEVICE)[: len(target)].clone()
    upstream[::skip] = 0
    total = sum((value * upstream).sum() for value in out)
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    return [*out, *torch.autograd.grad(total, leaves)]


def keep_at_most(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(kept_memory, "_LIMIT", [size])


with_heads = pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param(OPTIONS["plain"], torch.bfloat16, id="plain-bf16"),
        pytest.param(OPTIONS["bias"], torch.float32, id="bias-fp32"),
        pytest.param(OPTIONS["softcap"], torch.bfloat16, id="softcap-bf16"),
        pytest.param(OPTIONS["entropy"], torch.float32, id="entropy-fp32"),
    ],
)


@with_heads
def test_neither_what_is_kept_nor_the_scratch_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, kernels: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    inputs = problem(70, dtype)
    everything = gradients(*inputs, options)
    keep_at_most(monkeypatch, tile_row_bytes(*inputs[:2]))
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 1)  # one tile of columns at a time
    some = gradients(*inputs, options)
    assert all(map(torch.equal, everything, some))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@with_heads
def test_a_row_does_not_depend_on_its_batch_with_both_passes_in_triton(
    options: dict[str, Any], dtype: torch.dtype, frozen: bool
) -> None:
    hidden, weight, target = problem(70, dtype)
    weight.requires_grad_(not frozen)
    whole = gradients(hidden, weight, target, options)
    leading = slice(0, 3 if "entropy" in options else 2)  # outputs and the gradient of hidden
    part = gradients(hidden[:37], weight, target[:37], options)
    for a, b in zip(whole[leading], part[leading], strict=True):
        assert torch.equal(a[:37], b)


def test_a_second_backward_gives_the_same_bits() -> None:
    hidden, weight, target = problem(70)
    total = r1kernels.linear_logprob(hidden, weight, target).logprob.sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(total, (hidden, weight))
    assert all(map(torch.equal, first, second))


def test_rows_that_are_not_to_be_kept_leave_room_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that want no gradient come last in the kept memory, wherever they are in the batch."""
    hidden, weight, target = problem(96)
    keep = torch.arange(96, device=DEVICE) % 2 == 1
    keep_at_most(monkeypatch, tile_row_bytes(hidden, weight))  # 48 rows: the odd ones

    def run(keep: Tensor | None) -> tuple[Tensor, ...]:
        logprob, _, regime = module.head_logprob(
            "test", hidden, weight, target, None, 1.0, 1.0, None, False, keep=keep
        )
        assert regime == "kept"
        return (logprob, *torch.autograd.grad(logprob[1::2].sum(), (hidden, weight)))

    (logprob, dhidden, dweight), (*same, dweight_in_place) = run(keep), run(None)
    assert torch.equal(logprob, same[0])
    assert torch.equal(dhidden, same[1])
    torch.testing.assert_close(dweight, dweight_in_place)  # summed in another order


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_rows_without_a_gradient_may_hold_anything(frozen: bool) -> None:
    hidden, weight, target = problem(70)
    weight.requires_grad_(not frozen)
    expected = gradients(hidden, weight, target, {}, skip=5)[1:]
    with torch.no_grad():
        hidden[::5] = torch.inf
    got = gradients(hidden, weight, target, {}, skip=5)[1:]
    rows = torch.arange(70) % 5 != 0
    assert torch.equal(got[0][rows], expected[0][rows])
    if not frozen:
        assert torch.equal(got[1], expected[1])


def test_a_frozen_head_takes_its_rows_block_by_block(
    monkeypatch: pytest.MonkeyPatch, kernels: Any
) -> None:
    hidden, weight, target = problem(150, columns=130)
    weight.requires_grad_(False)
    whole = gradients(hidden, weight, target, {"softcap": 3.0})
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 1)  # 128 rows at a time
    blocks = gradients(hidden, weight, target, {"softcap": 3.0})
    assert all(map(torch.equal, whole, blocks))


def test_many_rows_take_the_forward_pass_block_by_block(
    monkeypatch: pytest.MonkeyPatch, kernels: Any
) -> None:
    inputs = problem(70)
    whole = gradients(*inputs, {"entropy": True})
    monkeypatch.setattr(kernels, "BLOCK_ROWS", 64)
    blocks = gradients(*inputs, {"entropy": True})
    assert all(map(torch.equal, whole, blocks))


def test_probabilities_of_zero_and_columns_of_minus_infinity() -> None:
    """A bias of −inf takes tokens out of the vocabulary, a whole tile of them too."""
    hidden, weight, target = problem(20)
    bias = torch.zeros(270, device=DEVICE)
    bias[: 2 * 128] = -torch.inf
    target = 256 + target % 14
    out = r1kernels.linear_logprob(hidden, weight, target, bias=bias, entropy=True)
    total = (out.logprob + out.entropy).sum()
    dhidden, dweight = torch.autograd.grad(total, (hidden, weight))
    few = weight.detach()[256:].clone().requires_grad_()
    expected = r1kernels.linear_logprob(hidden, few, target - 256, entropy=True)
    total = (expected.logprob + expected.entropy).sum()
    expected_dhidden, expected_dfew = torch.autograd.grad(total, (hidden, few))
    torch.testing.assert_close(out.logprob, expected.logprob)
    torch.testing.assert_close(out.entropy, expected.entropy)
    torch.testing.assert_close(dhidden, expected_dhidden)
    torch.testing.assert_close(dweight[256:], expected_dfew)
    assert not dweight[:256].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_targets_far_below_the_top(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, frozen: bool
) -> None:
    """Exponentials relative to such a target would leave the range; others need no care."""
    hidden, weight, target = problem(70, dtype)
    with torch.no_grad():
        hidden[::3] *= 40
    weight.requires_grad_(not frozen)
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight)]
    with r1kernels.using("torch"):
        expected = gradients(*exact, target, {})
    assert expected[0].min() < -150
    everything = gradients(hidden, weight, target, {})
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for got, truth in zip(everything, expected, strict=True):
        limit = tolerance * float(truth.abs().max())
        torch.testing.assert_close(got.double(), truth, rtol=tolerance, atol=limit)
    keep_at_most(monkeypatch, tile_row_bytes(hidden, weight))
    some = gradients(hidden, weight, target, {})
    assert all(map(torch.equal, everything, some))


def test_rows_by_descriptors_or_by_pointers_give_the_same(
    monkeypatch: pytest.MonkeyPatch, kernels: Any
) -> None:
    inputs = problem(70, torch.bfloat16)
    assert kernels.parameters("logits", *inputs[:2])["TMA"] == has_descriptors()
    by_descriptors = gradients(*inputs, {})
    monkeypatch.setattr(kernels.descriptors, "able", lambda tensor: False)
    by_pointers = gradients(*inputs, {})
    for a, b in zip(by_descriptors, by_pointers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def has_descriptors() -> bool:
    return DEVICE == "cpu" or torch.cuda.get_device_capability()[0] in (9, 10)


def test_rows_that_do_not_begin_at_whole_16_bytes(kernels: Any) -> None:
    hidden, weight, target = problem(20, torch.bfloat16)
    narrow = [t.detach()[:, :37].contiguous().requires_grad_() for t in (hidden, weight)]
    assert not kernels.parameters("logits", *narrow)["TMA"]
    padded = [torch.nn.functional.pad(t.detach(), (0, 3)).requires_grad_() for t in narrow]
    for a, b in zip(gradients(*narrow, target, {}), gradients(*padded, target, {}), strict=True):
        torch.testing.assert_close(a, b[:, :37] if b.dim() == 2 else b, rtol=1e-2, atol=1e-3)


def test_half_precision() -> None:
    hidden, weight, target = problem(20, torch.float16)
    got = gradients(hidden, weight, target, {})
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    with r1kernels.using("torch"):
        expected = gradients(*exact, target, {})
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=5e-3, atol=5e-3)


def test_a_target_that_is_nowhere_shows() -> None:
    """On a GPU nobody looks at the values of targets beforehand."""
    hidden, weight, target = problem(3)
    target[1] = 270
    inputs = (None, None, None, 1.0, None, False, False, 0, False, -100, False)
    from r1kernels.head.triton.linear_logprob import linear_logprob

    logprob = linear_logprob(hidden.detach(), weight.detach(), target, *inputs)[0]
    assert logprob.isnan().tolist() == [False, True, False]


def test_shares_that_were_never_kept_show(kernels: Any) -> None:
    """A buffer that another backend filled is of no use, and must not pass for one."""
    hidden, weight, target = (tensor.detach() for tensor in problem(3))
    options = (None, None, None, 1.0, None)
    logprob, entropy, lse, kept, _ = kernels.linear_logprob(
        hidden, weight, target, *options, False, False, 48, False, -100, False
    )
    kept[-8:] = 0
    dhidden, *_ = kernels.linear_logprob_backward(
        torch.ones_like(logprob), entropy, hidden, weight, target, None, None, logprob, lse,
        entropy, kept, None, 1.0, None, False, -100, False, True, False, False,
    )  # fmt: skip
    assert dhidden.isnan().all()


def test_a_shard_keeps_nothing(kernels: Any) -> None:
    """Its shares are not those of the whole vocabulary, whose sum comes with the backward pass."""
    hidden, weight, target = (tensor.detach() for tensor in problem(20))
    target[::2] += 270  # in another shard

    def backward(kept_rows: int) -> Tensor:
        logprob, entropy, lse, kept, _ = kernels.linear_logprob(
            hidden, weight, target, None, None, None, 1.0, None, False, False, kept_rows, False,
            -100, True,
        )  # fmt: skip
        return kernels.linear_logprob_backward(
            torch.ones_like(logprob), entropy, hidden, weight, target, None, None, logprob, lse + 1,
            entropy, kept, None, 1.0, None, False, -100, True, True, False, False,
        )[0]  # fmt: skip

    assert torch.equal(backward(48), backward(0))
