"""packed_attention: sdpa's results, gradients, what a segment depends on, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import r1kernels
from r1kernels.__main__ import unavailable
from r1kernels.attention.packed_attention import (
    PACKED_ATTENTION,
    PACKED_ATTENTION_BACKWARD,
    Group,
    packing,
)
from tests.roundings import saved_by

BACKENDS = [b for b in ("torch", "cpp") if unavailable(PACKED_ATTENTION, b) is None]
GROUPS = (Group(9, (7, 1, 60)), Group(30, (5, 33)))
WIDTHS = {"heads of 16": (16, 16), "latent": (24, 16)}
every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def heads(
    tokens: int, query: int = 6, key: int = 2, width: int = 16, value_width: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    rng = torch.Generator().manual_seed(tokens)
    shapes = (query, width), (key, width), (key, value_width)
    made = (torch.randn(tokens, *shape, generator=rng).to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in made]


def by_sdpa(inputs: list[Tensor], cu_seqlens: Tensor, prefix: Tensor) -> Tensor:
    """Each segment by itself, behind a copy of its prefix, with the mask's lower right corner."""
    parts = list(pairwise(cu_seqlens.tolist()))
    results = []
    for (begin, end), first in zip(parts, prefix.tolist(), strict=True):
        q, k, v = (x[begin:end] for x in inputs)
        if first >= 0:
            k, v = (torch.cat([x[slice(*parts[first])], x[begin:end]]) for x in inputs[1:])
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        results.append(out.transpose(0, 1))
    return torch.cat(results)


def both_passes(backend: str, inputs: list[Tensor], *packed: Tensor | None) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    with r1kernels.using(backend):
        out = r1kernels.packed_attention(*inputs, *packed)
        upstream = torch.randn(out.shape, generator=rng).to(out)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@every_backend
@pytest.mark.parametrize("widths", WIDTHS)
def test_it_is_sdpa_of_every_segment_behind_its_prefix(widths: str, backend: str) -> None:
    cu_seqlens, prefix = packing(GROUPS)
    inputs = heads(int(cu_seqlens[-1]), 6, 2, *WIDTHS[widths])
    found = both_passes(backend, inputs, cu_seqlens, prefix)
    out = by_sdpa(inputs, cu_seqlens, prefix)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(found, (out, *torch.autograd.grad(out, inputs, upstream)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    cu_seqlens, prefix = packing((Group(2, (3, 1)), Group(1, (2,))))
    inputs = [x.detach().double().requires_grad_() for x in heads(9, 4, 2, 3, 2)]
    assert torch.autograd.gradcheck(
        lambda *given: r1kernels.packed_attention(*given, cu_seqlens, prefix, scale=0.7), inputs
    )


@every_backend
@both_dtypes
def test_a_segment_depends_on_itself_and_its_prefix_alone(backend: str, dtype: torch.dtype) -> None:
    """Of a group in company and alone the same bits, of both passes; the reference rounds."""
    cu_seqlens, prefix = packing(GROUPS)
    inputs = heads(int(cu_seqlens[-1]), dtype=dtype)
    with r1kernels.using(backend):
        whole = PACKED_ATTENTION(*inputs, cu_seqlens, prefix, 0.25)
        slope = torch.randn(whole[0].shape).to(dtype)
        slopes = PACKED_ATTENTION_BACKWARD(slope, *inputs, *whole, cu_seqlens, prefix, 0.25)
        ends = cu_seqlens.tolist()
        for prompt in (0, 1):
            members = [prompt, *(prefix == prompt).nonzero().flatten().tolist()]
            rows = torch.cat([torch.arange(ends[s], ends[s + 1]) for s in members])
            alone, of_alone = packing(GROUPS[prompt : prompt + 1])
            some = [x[rows].detach() for x in inputs]
            out, lse = PACKED_ATTENTION(*some, alone, of_alone, 0.25)
            gradients = PACKED_ATTENTION_BACKWARD(
                slope[rows], *some, out, lse, alone, of_alone, 0.25
            )
            expected = (whole[0][rows], whole[1][:, rows], *(x[rows] for x in slopes))
            for ours, theirs in zip((out, lse, *gradients), expected, strict=True):
                if backend == "torch":
                    torch.testing.assert_close(ours, theirs)
                else:
                    assert torch.equal(ours, theirs)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no C++ library")
@both_dtypes
def test_a_prefix_of_many_completions_has_the_same_gradient_on_any_number_of_threads(
    dtype: torch.dtype,
) -> None:
    """More tokens than one task goes through, so that several sums are added."""
    cu_seqlens, prefix = packing([Group(13, [50] * 14), Group(300, [50] * 14)])
    inputs = heads(int(cu_seqlens[-1]), 3, 1, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(both_passes("cpp", inputs, cu_seqlens, prefix))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@every_backend
@pytest.mark.parametrize("spoilt", ["query", "key", "value"])
@both_dtypes
def test_a_nan_reaches_those_that_see_it_and_no_others(
    spoilt: str, dtype: torch.dtype, backend: str
) -> None:
    """Weights of 0 do not carry it back to earlier tokens, nor over to other segments."""
    cu_seqlens, prefix = packing(GROUPS)
    inputs = heads(int(cu_seqlens[-1]), 1, 1, dtype=dtype)
    at = int(cu_seqlens[4]) + 20  # in the longest completion of the first prompt
    which = ("query", "key", "value").index(spoilt)
    with torch.no_grad():
        inputs[which][at] = torch.nan
    out, dquery, dkey, dvalue = both_passes(backend, inputs, cu_seqlens, prefix)
    segment = set(range(int(cu_seqlens[4]), int(cu_seqlens[5])))
    later = {t for t in segment if t >= at}
    reached = {at} if spoilt == "query" else later
    prompt = set(range(int(cu_seqlens[1])))
    seen = prompt | {t for t in segment if t <= max(reached)}

    def rows(x: Tensor) -> set[int]:
        return set(x.isnan().flatten(1).any(1).nonzero().flatten().tolist())

    assert rows(out) == reached
    assert rows(dquery) == reached
    assert rows(dkey) == seen
    assert rows(dvalue) == (seen if spoilt != "value" else set())


@every_backend
def test_heads_are_read_where_they_are(backend: str) -> None:
    """Parts of one projection, and heads before tokens."""
    cu_seqlens, prefix = packing(GROUPS)
    tokens = int(cu_seqlens[-1])
    joint = torch.randn(tokens, 10, 16).bfloat16()
    before = torch.randn(2, tokens, 16).bfloat16().transpose(0, 1)
    query, key = joint[:, :6], joint[:, 6:8]
    with r1kernels.using(backend):
        found = r1kernels.packed_attention(query, key, before, cu_seqlens, prefix)
        copies = (x.contiguous() for x in (query, key, before))
        assert torch.equal(found, r1kernels.packed_attention(*copies, cu_seqlens, prefix))


def test_the_backward_pass_keeps_one_number_for_a_query_beside_what_there_is() -> None:
    cu_seqlens, prefix = packing(GROUPS)
    inputs = heads(int(cu_seqlens[-1]))
    out = r1kernels.packed_attention(*inputs, cu_seqlens, prefix)
    kept = {tensor.data_ptr(): tensor.numel() for tensor in saved_by(out)}
    there = (*inputs, out, cu_seqlens, prefix)
    assert sum(kept.values()) == sum(x.numel() for x in there) + out.shape[0] * out.shape[1]


def test_it_compiles_whole_with_its_gradient() -> None:
    cu_seqlens, prefix = packing(GROUPS)
    inputs = heads(int(cu_seqlens[-1]))

    def loss(*given: Tensor) -> Tensor:
        return r1kernels.packed_attention(*given, cu_seqlens, prefix).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*inputs), inputs),
        torch.autograd.grad(loss(*inputs), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": [1, 0, -1]}, r"prefix\[0\]: expected a segment that has no prefix itself, got"),
        ({"prefix": [-1, 1, 0]}, r"prefix\[1\]: expected a segment that has no prefix itself, got"),
        ({"prefix": [-1, 3, 0]}, r"prefix\[1\]: expected 0 ≤ prefix < 3, or -1 for none, got 3"),
        ({"prefix": [-1, -2, 0]}, r"prefix\[1\]: expected 0 ≤ prefix < 3, or -1 for none, got -2"),
        ({"prefix": [-1, 0]}, r"prefix: expected S = 3 .*S is that of cu_seqlens"),
        ({"cu_seqlens": [0, 4, 2, 9]}, "cu_seqlens: expected non-decreasing offsets"),
        ({"cu_seqlens": [0, 4, 5, 8]}, r"cu_seqlens: .*end at T = 9, got 0 … 8"),
        ({"cu_seqlens": [4, 1, 4, 0]}, "cu_seqlens: .*these look like lengths"),
    ],
)
def test_what_is_no_packing_is_refused(change: dict[str, list[int]], message: str) -> None:
    given = {"cu_seqlens": [0, 4, 5, 9], "prefix": [-1, 0, 0]} | change
    tensors = {name: torch.tensor(value, dtype=torch.int32) for name, value in given.items()}
    with pytest.raises(ValueError, match=f"packed_attention: {message}"):
        r1kernels.packed_attention(*heads(9), **tensors)


def test_heads_that_do_not_fit_are_refused() -> None:
    starts = torch.tensor([0, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"key: .*Hkv that divides Hq = 5 .*got \[9, 2, 16\]"):
        r1kernels.packed_attention(*heads(9, 5, 2), starts)
