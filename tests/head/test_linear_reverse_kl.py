"""linear_reverse_kl against torch.nn.functional.kl_div of whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import r1kernels
from r1kernels.core import native
from r1kernels.testing.compare import bitwise_problems

T, H, G, V = 50, 24, 40, 331
BACKENDS = ("torch", "cpp") if native.load("cpp") is None else ("torch",)


def heads(dtype: torch.dtype, columns: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, teacher_hidden, teacher_weight; the first two require gradients."""
    rng = torch.Generator().manual_seed(1)
    student = [torch.randn(n, H, generator=rng).to(dtype).requires_grad_() for n in (T, columns)]
    teacher = [torch.randn(n, G, generator=rng).to(dtype) for n in (T, columns)]
    return student[0], student[1], *teacher


def options(dtype: torch.dtype) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(2)
    return {
        "bias": torch.randn(V, generator=rng).to(dtype).requires_grad_(),
        "teacher_bias": torch.randn(V, generator=rng).to(dtype),
        "temperature": (torch.rand(T, generator=rng) + 0.5).to(dtype),
        "logit_scale": 0.4,
        "softcap": 3.0,
        "teacher_logit_scale": 0.3,
        "teacher_softcap": 5.0,
    }


def whole(z: Tensor, teacher: Tensor, given: dict[str, Any]) -> Tensor:
    """The same of whole logits: F.kl_div, whose first argument is q and whose target is p."""

    def logprobs(z: Tensor, of: str) -> Tensor:
        z = (z + given.get(f"{of}bias", 0)) * given.get(f"{of}logit_scale", 1)
        if (cap := given.get(f"{of}softcap")) is not None:
            z = torch.tanh(z / cap) * cap
        return (z / torch.as_tensor(given.get("temperature", 1.0)).view(-1, 1)).log_softmax(-1)

    q, p = logprobs(teacher, "teacher_"), logprobs(z, "")
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("named", [False, True], ids=["plain", "all options"])
def test_divergence_and_gradients_are_those_of_whole_logits(backend: str, named: bool) -> None:
    dtype = torch.float64 if backend == "torch" else torch.float32
    hidden, weight, teacher_hidden, teacher_weight = heads(dtype)
    given = options(dtype) if named else {"temperature": 2.0}
    leaves = [hidden, weight, *([given["bias"]] if named else [])]
    upstream = torch.linspace(-1, 1, T, dtype=dtype)
    with r1kernels.using(backend, "linear_reverse_kl", "linear_reverse_kl_backward"):
        kl, _ = r1kernels.linear_reverse_kl(hidden, weight, teacher_hidden, teacher_weight, **given)
        gradients = torch.autograd.grad(kl, leaves, upstream)
    expected = whole(hidden @ weight.T, teacher_hidden @ teacher_weight.T, given)
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, upstream))


def test_gradcheck() -> None:
    hidden, weight, *teacher = (tensor.detach()[:7] for tensor in heads(torch.float64))
    torch.autograd.gradcheck(
        lambda h, w: r1kernels.linear_reverse_kl(h, w, *teacher, softcap=4.0, temperature=1.5).kl,
        (hidden.requires_grad_(), weight.requires_grad_()),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_a_teacher_that_is_the_student_all_is_exactly_zero(
    backend: str, dtype: torch.dtype
) -> None:
    hidden, weight, _, _ = heads(dtype)
    with r1kernels.using(backend, "linear_reverse_kl", "linear_reverse_kl_backward"):
        kl, entropy = r1kernels.linear_reverse_kl(
            hidden, weight, hidden.detach(), weight.detach(), temperature=0.7
        )
        gradients = torch.autograd.grad(kl.sum(), (hidden, weight))
    assert not kl.any()
    assert not any(gradient.any() for gradient in gradients)
    logp = (hidden.double() @ weight.double().T / 0.7).log_softmax(-1)
    torch.testing.assert_close(entropy.double(), -(logp.exp() * logp).sum(-1), atol=0.05, rtol=0.02)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="without compiled kernels BLAS has its own order")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    hidden, weight, teacher_hidden, teacher_weight = heads(dtype)

    def run(rows: slice) -> tuple[Tensor, ...]:
        own = hidden.detach()[rows].requires_grad_()
        kl, entropy = r1kernels.linear_reverse_kl(own, weight, teacher_hidden[rows], teacher_weight)
        return kl.detach(), entropy, *torch.autograd.grad(kl.sum(), own)

    everything = run(slice(None))
    for rows in (slice(1), slice(13, 50)):
        for part, all_rows in zip(run(rows), everything, strict=True):
            assert not bitwise_problems(part, all_rows[rows])


@pytest.mark.parametrize("skip", [False, True], ids=["every row", "rows without a gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_kept_changes_no_bit(dtype: torch.dtype, skip: bool) -> None:
    """Of some rows, of all, or of none. Blanks in kept blocks move the rows that dweight sums."""
    hidden, weight, teacher_hidden, teacher_weight = heads(dtype)
    upstream = torch.linspace(-1, 2, T)
    if skip:
        upstream[1::3] = 0
    found = []
    for limit in (0, 100_000, 10**9):
        with r1kernels.kept_memory(limit):
            kl, _ = r1kernels.linear_reverse_kl(
                hidden, weight, teacher_hidden, teacher_weight, temperature=0.8
            )
        leaves = (hidden,) if skip else (hidden, weight)
        found.append((kl, *torch.autograd.grad(kl, leaves, upstream)))
    for some in found[1:]:
        for a, b in zip(some, found[0], strict=True):
            assert not bitwise_problems(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient(backend: str) -> None:
    hidden, weight, teacher_hidden, teacher_weight = heads(torch.float32)
    size = 300
    with r1kernels.using(backend, "linear_reverse_kl", "linear_reverse_kl_backward"):
        kl, _ = r1kernels.linear_reverse_kl(
            hidden, weight, teacher_hidden, teacher_weight[:310], vocab_size=size
        )
        (gradient,) = torch.autograd.grad(kl.sum(), weight)
    expected = whole(hidden @ weight[:size].T, teacher_hidden @ teacher_weight[:size].T, {})
    torch.testing.assert_close(kl, expected)
    assert gradient[:size].any()
    assert not gradient[size:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_probability_adds_nothing(backend: str) -> None:
    """−∞ where both have it; where the teacher alone has it, the divergence is infinite."""
    hidden, weight, teacher_hidden, teacher_weight = heads(torch.float32)
    masked = torch.zeros(V)
    masked[::3] = -torch.inf
    given = {"bias": masked, "teacher_bias": masked}
    here = masked == 0
    with r1kernels.using(backend, "linear_reverse_kl", "linear_reverse_kl_backward"):
        kl, _ = r1kernels.linear_reverse_kl(hidden, weight, teacher_hidden, teacher_weight, **given)
        (gradient,) = torch.autograd.grad(kl.sum(), weight)
        alone, _ = r1kernels.linear_reverse_kl(
            hidden, weight, teacher_hidden, teacher_weight, teacher_bias=masked
        )
    expected = whole(hidden @ weight[here].T, teacher_hidden @ teacher_weight[here].T, {})
    torch.testing.assert_close(kl, expected)
    assert not gradient[~here].any()
    assert alone.isinf().all()


def test_a_teacher_that_requires_a_gradient_is_refused() -> None:
    hidden, weight, teacher_hidden, teacher_weight = heads(torch.float32)
    with pytest.raises(
        ValueError, match=r"linear_reverse_kl: teacher_weight: expected no gradient"
    ):
        r1kernels.linear_reverse_kl(hidden, weight, teacher_hidden, teacher_weight.requires_grad_())


def test_vocabularies_of_different_sizes_are_refused() -> None:
    hidden, weight, teacher_hidden, teacher_weight = heads(torch.float32)
    with pytest.raises(ValueError, match=r"teacher_weight: expected V = 331 in shape \[V, Ht\]"):
        r1kernels.linear_reverse_kl(hidden, weight, teacher_hidden, teacher_weight[:-1])
    with pytest.raises(ValueError, match="vocab_size: expected at most the V = 330 rows"):
        r1kernels.linear_reverse_kl(
            hidden, weight, teacher_hidden, teacher_weight[:-1], vocab_size=331
        )
