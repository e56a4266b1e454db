"""linear_logprob over each row's own ids, and which ids top-k and top-p leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import Candidates, candidates
from r1kernels.core import native
from r1kernels.head.linear_logprob import head_logprob

ROWS, WIDTH, COLUMNS = 40, 24, 130
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entropy": {"entropy": True},
    "softcap": {"softcap": 2.0, "temperature": 0.7},
    "all": {"bias": True, "softcap": 2.0, "temperature": 0.7, "logit_scale": 1.5, "entropy": True},
}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Candidates]:
    rng = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, WIDTH, generator=rng, dtype=torch.float64).to(dtype)
    weight = (torch.randn(COLUMNS, WIDTH, generator=rng, dtype=torch.float64) / 3).to(dtype)
    bias = torch.randn(COLUMNS, generator=rng, dtype=torch.float64).to(dtype)
    logits = hidden.float() @ weight.float().T
    target = logits.softmax(-1).multinomial(1, generator=rng)[:, 0]
    kept = candidates(logits, top_k=20, top_p=0.9, target=target)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), target, kept


def csr(kept: Candidates) -> dict[str, Tensor]:
    return {"candidate_ids": kept.ids, "candidate_offsets": kept.offsets}


def is_candidate(kept: Candidates) -> Tensor:
    """[T, V] bool"""
    dense = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    for t in range(ROWS):
        dense[t, kept.ids[kept.offsets[t] : kept.offsets[t + 1]]] = True
    return dense


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_equals_dense_logits_with_minus_infinity_outside(head: dict[str, Any], kind: str) -> None:
    hidden, weight, bias, target, kept = problem(DTYPES[kind])
    options = {**head}
    offset = bias if options.pop("bias", False) else None
    got = r1kernels.linear_logprob(hidden, weight, target, bias=offset, **options, **csr(kept))

    wide = torch.float64 if kind == "fp64" else torch.float32
    z = hidden.to(wide) @ weight.to(wide).T
    if offset is not None:
        z = z + offset.to(wide)
    z = z * options.get("logit_scale", 1.0)
    if "softcap" in options:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    logp = (z / options.get("temperature", 1.0)).masked_fill(~is_candidate(kept), -torch.inf)
    logp = logp.log_softmax(-1)
    expected = [logp.gather(1, target[:, None])[:, 0]]
    if got.entropy is not None:
        expected.append(-(logp.exp() * logp.where(is_candidate(kept), 0)).sum(-1))

    upstream = torch.randn(ROWS, dtype=wide, generator=torch.Generator().manual_seed(5))
    leaves = [hidden, weight] if offset is None else [hidden, weight, bias]
    outputs = [value for value in got if value is not None]
    tolerance = {"rtol": 1.6e-2, "atol": 2e-2} if kind == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(sum((upstream * v).sum() for v in outputs), leaves),
        torch.autograd.grad(sum((upstream * v).sum() for v in expected), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, bias, target, kept = problem(torch.float64)
    rows = slice(0, 4)
    offsets = kept.offsets[:5]

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return r1kernels.linear_logprob(
            hidden, weight, target[rows], bias=bias, softcap=2.0, temperature=0.7, entropy=True,
            candidate_ids=kept.ids[: offsets[-1]], candidate_offsets=offsets,
        )  # fmt: skip

    leaf = hidden[rows].detach().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (leaf, weight, bias), fast_mode=True)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_rows_without_a_gradient_may_hold_anything(backend: str) -> None:
    if backend == "cpp" and native.load("cpp") is not None:
        pytest.skip("the C++ library is not built")
    hidden, weight, _, target, kept = problem(torch.float32)
    with torch.no_grad():
        hidden[5] = torch.inf
        hidden[6] = torch.nan
    upstream = torch.ones(ROWS)
    upstream[5:7] = 0
    with r1kernels.using(backend):
        result = r1kernels.linear_logprob(hidden, weight, target, entropy=True, **csr(kept))
        (result.logprob * upstream).sum().backward()
    assert weight.grad.isfinite().all()
    assert not hidden.grad[5:7].any()


def test_ignored_rows_need_no_candidate() -> None:
    hidden, weight, _, target, kept = problem(torch.float32)
    counts = kept.offsets.diff()
    target[::3] = -100
    counts[::3] = 0
    ids = kept.ids[(target != -100).repeat_interleave(kept.offsets.diff())]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    logprob, _, regime = head_logprob(
        "test", hidden, weight, target, None, 1.0, 1.0, None, False, ignore_index=-100,
        candidate_ids=ids, candidate_offsets=offsets,
    )  # fmt: skip
    logprob.sum().backward()
    assert regime == "kept"
    assert not logprob[::3].any()
    assert not hidden.grad[::3].any()
    assert hidden.grad[1].any()


def test_a_row_does_not_depend_on_its_batch() -> None:
    if native.load("cpp") is not None:
        pytest.skip("BLAS chooses its order by the shape; the C++ library is not built")
    hidden, weight, _, target, kept = problem(torch.bfloat16)
    whole = r1kernels.linear_logprob(hidden, weight, target, entropy=True, **csr(kept))
    begin, end = int(kept.offsets[11]), int(kept.offsets[12])
    alone = r1kernels.linear_logprob(
        hidden[11:12], weight, target[11:12], entropy=True, candidate_ids=kept.ids[begin:end],
        candidate_offsets=torch.tensor([0, end - begin]),
    )  # fmt: skip
    for one, all_rows in zip(alone, whole, strict=True):
        assert torch.equal(one[0], all_rows[11])


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_every_id_a_candidate_is_the_plain_head(kind: str) -> None:
    hidden, weight, _, target, _ = problem(DTYPES[kind])
    ids = torch.arange(COLUMNS).repeat(ROWS)
    offsets = torch.arange(ROWS + 1) * COLUMNS
    got = r1kernels.linear_logprob(
        hidden, weight, target, entropy=True, candidate_ids=ids, candidate_offsets=offsets
    )
    logits = hidden.double() @ weight.double().T
    expected = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(got.logprob.double(), expected, rtol=1e-4, atol=1e-5)


def wrong(change: str) -> dict[str, Any]:
    *_, kept = problem(torch.float32)
    ids, offsets = kept.ids.clone(), kept.offsets.clone()
    first = int(offsets[3])
    if change == "no candidate":
        ids = torch.cat([ids[:first], ids[offsets[4] :]])
        offsets[4:] -= int(offsets[4]) - first
    elif change == "another size":
        offsets = offsets[:-1]
    elif change == "past the end":
        offsets[-1] += 1
    elif change == "falling":
        offsets[3] = offsets[4] + 1
    elif change == "out of range":
        ids[7] = COLUMNS
    elif change == "float":
        ids = ids.float()
    elif change == "without offsets":
        return {"candidate_ids": ids}
    return {"candidate_ids": ids, "candidate_offsets": offsets}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no candidate", ValueError, r"among those of row 3, got no candidate"),
        ("another size", ValueError, r"candidate_offsets: expected T \+ 1 = 41 offsets, got 40"),
        ("past the end", ValueError, r"candidate_offsets: expected non-decreasing offsets from 0"),
        ("falling", ValueError, r"candidate_offsets: expected non-decreasing offsets from 0"),
        ("out of range", ValueError, r"candidate_ids\[7\]: expected 0 ≤ candidate_ids < 130"),
        ("float", TypeError, r"candidate_ids: expected dtype int64 or int32, got float32"),
        ("without offsets", TypeError, r"candidate_offsets: expected a tensor .* got None"),
    ],
)
def test_bad_input_is_named(change: str, error: type[Exception], message: str) -> None:
    hidden, weight, _, target, _ = problem(torch.float32)
    with pytest.raises(error, match=message):
        r1kernels.linear_logprob(hidden, weight, target, **wrong(change))


def test_a_target_that_the_sampler_could_not_draw_is_named() -> None:
    hidden, weight, _, target, kept = problem(torch.float32)
    target[2] = int((~is_candidate(kept)[2]).nonzero()[0])
    count = int(kept.offsets[3] - kept.offsets[2])
    message = rf"expected target\[2\] = {int(target[2])} among those of row 2, got {count} others"
    with pytest.raises(ValueError, match=message):
        r1kernels.linear_logprob(hidden, weight, target, **csr(kept))


def as_huggingface(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[T, V] bool: what its three warpers leave, in their order."""
    scores = logits / temperature
    scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
    ascending, order = scores.sort(descending=False)
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    removed[:, -1:] = False
    return (scores > -torch.inf) & ~removed.scatter(1, order, removed)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 20, 0.9), (0.5, 5, 0.5)])
def test_the_order_is_temperature_then_top_k_then_top_p(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = 3 * torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    kept = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(is_candidate(kept), as_huggingface(logits, temperature, top_k, top_p))


def test_no_row_is_left_empty_and_the_target_is_kept() -> None:
    logits = torch.randn(ROWS, COLUMNS)
    best = candidates(logits, top_p=1e-6)
    assert torch.equal(best.ids, logits.argmax(-1))
    least = logits.argmin(-1)
    both = candidates(logits, top_k=1, target=least)
    assert (both.offsets.diff() == 2).all()
    assert is_candidate(both).gather(1, least[:, None]).all()


def test_without_limits_every_id_of_finite_logit_is_kept() -> None:
    logits = torch.randn(ROWS, COLUMNS)
    logits[:, 3] = -torch.inf
    kept = candidates(logits, top_p=1.0)
    assert (kept.offsets.diff() == COLUMNS - 1).all()
    assert not (kept.ids == 3).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "candidates: top_k: expected a whole number, 1 or more, got 0"),
        ({"top_p": 0.0}, r"candidates: top_p: expected a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"candidates: top_p: expected a number in \(0, 1\], got 1.5"),
        ({"temperature": 0.0}, "candidates: temperature: expected a number above 0"),
    ],
)
def test_bad_limits_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        candidates(torch.zeros(2, 5), **options)
