"""Routing against an independent stable sort in NumPy, and everything that is promised of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import r1kernels
from r1kernels.core import native
from r1kernels.core.op import Case
from r1kernels.moe import route as ops
from r1kernels.moe.route import MOE_ROUTE, MOE_ROUTE_BACKWARD, VARIANTS, Variant
from r1kernels.testing.compare import Truth, bitwise_problems
from tests import instruction_sets

ON_CPU = ["torch"]
if native.absent("cpp", "moe_route") is None:
    ON_CPU += [f"cpp-{isa}" for isa in instruction_sets.here()]
every_backend = pytest.mark.parametrize("backend", ON_CPU)
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@contextmanager
def on(backend: str) -> Iterator[None]:
    name, _, isa = backend.partition("-")
    with r1kernels.using(name, MOE_ROUTE, MOE_ROUTE_BACKWARD):
        if isa:
            torch.ops.r1_cpp.limit_isa(isa)
        try:
            yield
        finally:
            if isa:
                torch.ops.r1_cpp.limit_isa("")


def options(variant: Variant, bias: Tensor | None = None) -> dict[str, Any]:
    groups, used = variant.groups
    return {
        "score": variant.score, "order": variant.order, "bias": bias, "num_groups": groups,
        "top_k_groups": used, "normalize": variant.normalize, "scale": variant.scale,
    }  # fmt: skip


def chosen_by_sorting(
    logits: Tensor, top_k: int, variant: Variant, bias: Tensor | None
) -> np.ndarray:
    """[T, k]: a stable sort of float64 scores, with no word of the package's own reference."""
    key = logits.double().numpy().copy()
    if variant.order == "score_first" and (bias is not None or variant.score == "sigmoid"):
        if variant.score == "softmax":
            e = np.exp(key - key.max(1, keepdims=True))
            key = e / e.sum(1, keepdims=True)
        elif bias is not None or variant.groups[0] > 1:
            one = 1 / (1 + np.exp(-key))
            key = one if variant.score == "sigmoid" else np.sqrt(np.logaddexp(0, key))
    if bias is not None:
        key = key + bias.double().numpy()
    groups, used = variant.groups
    if groups > 1:
        size = key.shape[1] // groups
        ranked = np.sort(key.reshape(-1, groups, size), axis=2)[:, :, ::-1]
        group = ranked[:, :, 0]
        if variant.score != "softmax" and variant.order == "score_first":
            # A few units in the last place apart are equal: σ(z) + σ(−z) is 1 for every z.
            group = np.float64(np.rint((group + ranked[:, :, 1]) * 2.0**46) / 2.0**46)
        best = np.argsort(-group, axis=1, kind="stable")[:, :used]
        inside = np.zeros_like(group, dtype=bool)
        np.put_along_axis(inside, best, True, axis=1)
        key = np.where(np.repeat(inside, size, axis=1), key, -np.inf)
    return np.argsort(-key, axis=1, kind="stable")[:, :top_k]


def rows_of_kind(kind: str, rows: int, experts: int, seed: int) -> tuple[Tensor, Tensor]:
    """(logits, bias); all but the first are made to tie."""
    rng = torch.Generator().manual_seed(seed)
    logits, bias = (torch.randn(n, experts, generator=rng) for n in (rows, 1))
    bias = bias[0] / 10
    if kind == "quantised":
        return (logits * 2).round() / 2, (bias * 20).round() / 4
    if kind == "equal":
        return logits[:, :1].expand(rows, experts), torch.zeros(experts)
    if kind == "zeros":
        return torch.where(logits > 0, 0.0, -0.0), torch.zeros(experts)
    if kind == "saturated":
        return (logits * 3).round() * 40, torch.zeros(experts)
    return logits, bias


SIZES = {"DeepSeek-V3": ((64, 8, 11), (256, 8, 3)), "DeepSeek-V2": ((64, 6, 11), (160, 6, 2))}
SHARES = {"random": 5, "quantised": 2, "equal": 1, "zeros": 1, "saturated": 1}


def test_ids_are_those_of_a_stable_sort_on_a_million_rows() -> None:
    count = 0
    for name, variant in VARIANTS.items():
        for experts, top_k, share in SIZES.get(name, ((32, 4, 12), (128, 8, 2))):
            for kind, part in SHARES.items():
                rows = 1100 * share * part
                logits, bias = rows_of_kind(kind, rows, experts, count)
                bias = bias if variant.biased else None
                got = r1kernels.moe_route(logits, top_k, align=None, **options(variant, bias)).ids
                expected = chosen_by_sorting(logits, top_k, variant, bias)
                wrong = (got.numpy() != expected).any(1)
                assert not wrong.any(), (name, experts, kind, int(wrong.sum()))
                count += rows
    assert count >= 1_000_000


@every_backend
@pytest.mark.parametrize("case", ops.STRANGE, ids=lambda case: case.name)
def test_nan_and_infinities_are_as_the_reference_has_them(backend: str, case: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        args = case.make("cpu")
        args = (args[0].to(dtype), *args[1:])
        with on(backend):
            parity = Truth(MOE_ROUTE, case, args).check(backend, MOE_ROUTE(*args))
        assert not parity.problems, "\n".join(parity.problems)
        ids = MOE_ROUTE(*args)[1]
        assert ((ids >= 0) & (ids < args[0].shape[1])).all()
        assert all(len(set(row)) == len(row) for row in ids.tolist())


@every_backend
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (16, 7)], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.0], ids=str)
def test_a_row_of_one_strange_value_is_chosen_in_order(
    backend: str, groups: tuple[int, int], value: float
) -> None:
    variant = Variant(groups=groups)
    with on(backend):
        ids = r1kernels.moe_route(torch.full((5, 32), value), 9, **options(variant)).ids
    assert ids.tolist() == [list(range(9))] * 5


@every_variant
@pytest.mark.parametrize("replay", [False, True], ids=["chosen", "replayed"])
def test_gradcheck(variant: Variant, replay: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 16, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(16, generator=rng) if variant.biased else None
    arguments = options(variant, bias)
    if replay:
        ids = torch.rand(5, 16, generator=rng).argsort(1)[:, :3]
        ids[1, 0] = 16
        arguments["replay_ids"] = ids

    def weights(values: Tensor) -> Tensor:
        return r1kernels.moe_route(values, 3, **arguments).weights

    assert torch.autograd.gradcheck(weights, (logits,))


@every_backend
@every_variant
def test_gradient_is_that_of_the_written_out_formula(backend: str, variant: Variant) -> None:
    rng = torch.Generator().manual_seed(5)
    logits, ids = torch.randn(7, 24, generator=rng), torch.rand(7, 24, generator=rng).argsort(1)
    ids, grad = ids[:, :5].contiguous(), torch.randn(7, 5, generator=rng)
    leaf, live = (logits.clone().requires_grad_() for _ in range(2))
    with on(backend):
        found = r1kernels.moe_route(
            leaf, 5, replay_ids=ids, **options(variant._replace(groups=(1, 1)))
        )
        found.weights.backward(grad)
    z = live.double()
    scores = {
        "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1),
        "sqrtsoftplus": lambda x: torch.log1p(x.exp()).sqrt(),
    }[variant.score]  # fmt: skip
    late = variant.order == "topk_first"
    s = scores(z.gather(1, ids)) if late else scores(z).gather(1, ids)
    if variant.normalize and not (late and variant.score == "softmax"):
        s = s / s.sum(1, keepdim=True)
    (s * variant.scale).backward(grad.double())
    torch.testing.assert_close(found.weights.detach().double(), s.detach() * variant.scale)
    torch.testing.assert_close(leaf.grad, live.grad)


@every_backend
def test_replay_weighs_live_scores_and_gives_slots_of_nobody_nothing(backend: str) -> None:
    logits = torch.randn(6, 16, requires_grad=True)
    ids = torch.tensor([[3, 5, 99]]).repeat(6, 1)
    with on(backend):
        found = r1kernels.moe_route(logits, 3, replay_ids=ids.int())
        found.weights[:, 0].sum().backward()
    live = logits.detach().sigmoid()[:, [3, 5]]
    torch.testing.assert_close(found.weights[:, :2].detach(), live / live.sum(1, keepdim=True))
    assert (found.weights[:, 2] == 0).all()
    assert found.ids.tolist() == [[3, 5, 16]] * 6
    assert (found.inverse[:, 2] == -1).all()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(0).nonzero()[:, 0].tolist()
    assert touched == [3, 5]


@every_backend
def test_rows_of_padding_go_to_no_expert(backend: str) -> None:
    logits = torch.randn(150, 16, requires_grad=True)
    with on(backend):
        part = r1kernels.moe_route(logits, 4, num_valid=torch.tensor(70))
        whole = r1kernels.moe_route(logits[:70], 4)
        (gradient,) = torch.autograd.grad(part.weights.square().sum(), logits)
    assert torch.equal(part.ids[:70], whole.ids)
    assert torch.equal(part.counts, whole.counts)
    assert (part.ids[70:] == 16).all()
    assert (part.weights[70:] == 0).all()
    assert (gradient[70:] == 0).all()
    assert gradient[:70].any()


@every_backend
@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(
    backend: str, variant: Variant, dtype: torch.dtype
) -> None:
    logits = torch.randn(150, 48).to(dtype)
    bias = torch.randn(48) if variant.biased else None
    results = []
    with on(backend):
        for begin, end in ((0, 150), (0, 1), (67, 70), (149, 150)):
            leaf = logits[begin:end].clone().requires_grad_()
            found = r1kernels.moe_route(leaf, 5, align=None, **options(variant, bias))
            (gradient,) = torch.autograd.grad(found.weights.square().sum(), leaf)
            results.append((begin, end, found.weights.detach(), found.ids, gradient))
    _, _, *whole = results[0]
    for begin, end, *part in results[1:]:
        for all_rows, some_rows in zip(whole, part, strict=True):
            assert not bitwise_problems(some_rows, all_rows[begin:end])


def test_the_bias_gets_no_gradient() -> None:
    logits, bias = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    r1kernels.moe_route(logits, 2, bias=bias).weights[:, 0].sum().backward()
    assert logits.grad is not None
    assert bias.grad is None


@every_backend
def test_negative_scores_do_not_lose_to_groups_that_are_out(backend: str) -> None:
    """vLLM #13474: experts of other groups were masked with 0, and won over negative scores."""
    logits = torch.randn(50, 32)
    bias = torch.full((32,), -5.0)
    with on(backend):
        found = r1kernels.moe_route(logits, 8, bias=bias, num_groups=4, top_k_groups=1)
    assert (found.ids // 8 == found.ids[:, :1] // 8).all()


@every_backend
def test_a_sum_of_opposite_logits_is_the_same_for_all(backend: str) -> None:
    z = torch.arange(1, 41) / 8  # σ(z) + σ(−z) differs from 1 in its last bit for some
    logits = torch.stack([z, -z], 1).reshape(1, 80)
    with on(backend):
        ids = r1kernels.moe_route(logits, 20, num_groups=40, top_k_groups=10).ids
    assert ids.sort().values.tolist() == [list(range(20))]


@every_backend
def test_strided_logits_are_as_good(backend: str) -> None:
    logits = torch.randn(16, 40).t()
    with on(backend):
        a, b = r1kernels.moe_route(logits, 4), r1kernels.moe_route(logits.contiguous(), 4)
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.weights, b.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(8)}, r"logits: expected shape \[T, E\], got \[8\]"),
        ({"logits": torch.zeros(2, 8).long()}, "logits: expected dtype float32 or .*, got int64"),
        ({"logits": torch.zeros(2, 1025)}, "logits: expected 1 ≤ E ≤ 1024, got 1025"),
        ({"top_k": 0}, "top_k: expected a whole number, 1 or more, got 0"),
        ({"top_k": 9}, "top_k: expected top_k ≤ 8, .* got 9"),
        (
            {"num_groups": 4, "top_k_groups": 1, "top_k": 3},
            "top_k: expected top_k ≤ 2, the experts in 1 of 4 groups, got 3",
        ),
        ({"num_groups": 3}, "num_groups: expected a divisor of E = 8, got 3"),
        ({"num_groups": 8, "top_k_groups": 4}, "num_groups: expected groups of at least 2"),
        ({"num_groups": 4, "top_k_groups": 5}, "top_k_groups: expected 1 ≤ .* = 4, got 5"),
        ({"score": "tanh"}, "score: expected one of sigmoid, .* got 'tanh'"),
        ({"order": "last"}, "order: expected one of score_first, .* got 'last'"),
        ({"bias": torch.zeros(7)}, r"bias: expected E = 8 in shape \[E\], got \[7\]"),
        ({"bias": torch.zeros(8).bfloat16()}, "bias: expected dtype float32 .* got bfloat16"),
        ({"bias": torch.zeros(8, device="meta")}, "bias: expected a tensor on cpu, got one on met"),
        ({"replay_ids": torch.zeros(2, 3).long()}, "replay_ids: expected k = 2 in shape"),
        ({"replay_ids": torch.zeros(2, 2)}, "replay_ids: expected dtype int64 or int32"),
        (
            {"replay_ids": torch.tensor([[0, 1], [1, -2]])},
            r"replay_ids\[1, 1\]: expected ids ≥ 0, got -2",
        ),
        ({"num_valid": torch.zeros(2).long()}, "num_valid: expected one number"),
        ({"align": 0}, "align: expected a whole number, 1 or more, got 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 8), "top_k": 2, **change}
    with pytest.raises((ValueError, TypeError), match=f"moe_(route|sort): {message}"):
        r1kernels.moe_route(**arguments)


def test_meta_tensors_get_shapes() -> None:
    found = r1kernels.moe_route(torch.empty(3, 8, device="meta"), 2, align=128)
    assert found.weights.shape == found.ids.shape == found.inverse.shape == (3, 2)
    assert found.weights.device.type == "meta"


def test_checked_mode_names_the_row_of_a_nan() -> None:
    logits = torch.zeros(4, 8)
    logits[2, 5] = torch.nan
    r1kernels.moe_route(logits, 2)
    message = r"moe_route: logits\[2, 5\]: expected a number, got nan"
    with r1kernels.checked(), pytest.raises(ValueError, match=message):
        r1kernels.moe_route(logits, 2)
    logits[2, 5] = torch.inf
    with r1kernels.checked():
        r1kernels.moe_route(logits, 2)


def test_compiles_once_for_every_number_of_rows() -> None:
    def loss(logits: Tensor, bias: Tensor) -> Tensor:
        found = r1kernels.moe_route(logits, 4, bias=bias, num_groups=4, top_k_groups=2)
        return found.weights.square().sum() + found.counts.sum()

    torch.compiler.reset()
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    bias = torch.randn(32)
    after = []
    for rows in (10, 15, 40):
        logits = torch.randn(rows, 32, requires_grad=True)
        value = compiled(logits, bias)
        (gradient,) = torch.autograd.grad(value, logits)
        (expected,) = torch.autograd.grad(loss(logits, bias), logits)
        assert torch.equal(gradient, expected)
        after.append(count.frame_count)
    assert after[-1] == after[0]
