"""What is special about linear_logprob; parity and the rest of the pattern is in test_ops.py."""

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.core import native
from r1kernels.head import linear_logprob as module
from r1kernels.head.linear_logprob_op import tile_row_bytes

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "temperature and scale": {"temperature": 0.7, "logit_scale": 1.5},
    "softcap": {"softcap": 2.0, "temperature": 1.3},
    "entropy": {"entropy": True},
    "all": {"bias": True, "softcap": 2.0, "temperature": 0.7, "logit_scale": 0.5, "entropy": True},
}


def problem(
    rows: int, width: int, columns: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=rng, dtype=torch.float64).to(dtype)
    weight = (2 * torch.randn(columns, width, generator=rng, dtype=torch.float64)).to(dtype)
    target = torch.randint(columns, (rows,), generator=rng)
    return hidden.requires_grad_(), (weight / width**0.5).detach().requires_grad_(), target


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_gradients_are_those_of_finite_differences(head: dict, frozen: bool) -> None:
    hidden, weight, target = problem(3, 4, 7, torch.float64)
    weight.requires_grad_(not frozen)
    options = {**head}
    bias = None
    if options.pop("bias", False):
        bias = torch.randn(7, dtype=torch.float64).requires_grad_(not frozen)

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        out = r1kernels.linear_logprob(hidden, weight, target, bias=bias, **options)
        return [value for value in out if value is not None]

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_kept_changes_no_bit(dtype: torch.dtype) -> None:
    def gradients(kept_bytes: int) -> list[Tensor]:
        hidden, weight, target = problem(120, 24, 200, dtype)
        upstream = torch.randn(120, generator=torch.Generator().manual_seed(2))
        upstream[48:96] = 0  # a kept block without any gradient
        upstream[::7] = 0
        with r1kernels.kept_memory(kept_bytes):
            out = r1kernels.linear_logprob(hidden, weight, target).logprob
        out.backward(upstream)
        return [out, hidden.grad, weight.grad]

    one_tile = tile_row_bytes(*problem(1, 24, 200, dtype)[:2])
    nothing, some, everything = gradients(0), gradients(2 * one_tile), gradients(1 << 30)
    for a, b, c in zip(nothing, some, everything, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("head", [{}, {"softcap": 2.0}, {"temperature": 0.5}], ids=str)
def test_a_frozen_head_gets_the_gradient_of_a_trained_one(head: dict) -> None:
    hidden, weight, target = problem(60, 32, 300, torch.float32)
    upstream = torch.randn(60, generator=torch.Generator().manual_seed(2))
    r1kernels.linear_logprob(hidden, weight, target, **head).logprob.backward(upstream)
    expected, hidden.grad = hidden.grad, None
    frozen = r1kernels.linear_logprob(hidden, weight.detach(), target, **head).logprob
    frozen.backward(upstream)
    largest = float(expected.abs().max())
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6 * largest)


def test_a_confident_row_keeps_its_small_gradient() -> None:
    """1 − p(target) of a confident token is far below the rounding of a stored bf16 probability."""
    weight = torch.zeros(64, 2, dtype=torch.bfloat16)
    weight[0, 0] = 12.0
    hidden = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    target = torch.zeros(1, dtype=torch.int64)
    miss = 63 / (63 + torch.exp(torch.tensor(12.0)))
    hidden.requires_grad_()
    for frozen in (False, True):
        head = weight.clone().requires_grad_(not frozen)
        hidden.grad = None
        r1kernels.linear_logprob(hidden, head, target).logprob.sum().backward()
        torch.testing.assert_close(hidden.grad[0, 0].float(), 12 * miss, rtol=2e-2, atol=0)


def test_rows_without_a_gradient_stay_out_of_the_weight_gradient() -> None:
    hidden, weight, target = problem(40, 16, 90, torch.float32)
    with torch.no_grad():
        hidden[5] = torch.inf  # would make everything NaN
    upstream = torch.ones(40)
    upstream[5] = 0
    r1kernels.linear_logprob(hidden, weight, target).logprob.backward(upstream)
    assert weight.grad.isfinite().all()
    assert not hidden.grad[5].any()


def test_more_rows_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the weight are summed over chunks of 1,056 rows."""
    hidden, weight, target = problem(2200, 8, 70, torch.float32)
    upstream = torch.randn(2200, generator=torch.Generator().manual_seed(2))
    gradients = {}
    if native.load("cpp") is not None:
        pytest.skip("needs a second backend: the C++ library is not built")
    for backend in ("torch", "cpp"):
        hidden.grad = weight.grad = None
        with r1kernels.using(backend):
            r1kernels.linear_logprob(hidden, weight, target).logprob.backward(upstream)
        gradients[backend] = hidden.grad, weight.grad
    for ours, theirs in zip(gradients["cpp"], gradients["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# How the models of HuggingFace make their logits of h·Wᵀ.
FAMILIES = {
    "Gemma2": (lambda z: torch.tanh(z / 2.5) * 2.5, {"softcap": 2.5}),
    "Cohere": (lambda z: z * 0.0625, {"logit_scale": 0.0625}),
    "Granite": (lambda z: z / 8.0, {"logit_scale": 1 / 8.0}),
}


@pytest.mark.parametrize(("logits", "options"), FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_options_are_the_formulas_of_the_families(logits, options: dict, frozen: bool) -> None:
    """A family's own logits, then each row's temperature, in this order (TRL #5691)."""
    hidden, weight, target = problem(40, 24, 90, torch.float32)
    weight.requires_grad_(not frozen)
    temperature = torch.linspace(0.5, 1.5, 40)
    got = r1kernels.linear_logprob(hidden, weight, target, temperature=temperature, **options)
    z = logits(hidden @ weight.T) / temperature[:, None]
    expected = z.log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(got.logprob, expected, rtol=1e-5, atol=1e-5)
    leaves = [hidden] if frozen else [hidden, weight]
    for ours, theirs in zip(
        torch.autograd.grad(got.logprob.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_temperature_is_a_full_vector_of_it() -> None:
    hidden, weight, target = problem(40, 24, 90, torch.float32)
    number = r1kernels.linear_logprob(hidden, weight, target, temperature=0.7).logprob
    vector = torch.full((40,), 0.7)
    rows = r1kernels.linear_logprob(hidden, weight, target, temperature=vector).logprob
    assert torch.equal(number, rows)


def test_integer_targets_of_both_widths() -> None:
    hidden, weight, target = problem(5, 8, 20, torch.float32)
    wide = r1kernels.linear_logprob(hidden, weight, target).logprob
    narrow = r1kernels.linear_logprob(hidden, weight, target.int()).logprob
    assert torch.equal(wide, narrow)


BAD = {
    "hidden of rank 3": (
        lambda h, w, y: ((h[None], w, y), {}),
        ValueError,
        r"linear_logprob: hidden: expected shape \[T, H\], got \[1, 4, 8\]",
    ),
    "weight of another width": (
        lambda h, w, y: ((h, w[:, :7], y), {}),
        ValueError,
        r"weight: expected H = 8 in shape \[V, H\], got \[10, 7\]",
    ),
    "weight of another dtype": (
        lambda h, w, y: ((h, w.bfloat16(), y), {}),
        TypeError,
        "weight: expected dtype float32, got bfloat16",
    ),
    "float target": (
        lambda h, w, y: ((h, w, y.float()), {}),
        TypeError,
        "target: expected dtype int64 or int32, got float32",
    ),
    "target too large": (
        lambda h, w, y: ((h, w, y.fill_(10)), {}),
        ValueError,
        r"target\[0\]: expected 0 ≤ target < 10, got 10",
    ),
    "negative target": (
        lambda h, w, y: ((h, w, y.fill_(-100)), {}),
        ValueError,
        r"target\[0\]: expected 0 ≤ target < 10, got -100",
    ),
    "bias of another size": (
        lambda h, w, y: ((h, w, y), {"bias": torch.zeros(9)}),
        ValueError,
        r"bias: expected V = 10 in shape \[V\], got \[9\]",
    ),
    "another device": (
        lambda h, w, y: ((h, w.to("meta"), y), {}),
        ValueError,
        "weight: expected a tensor on cpu, got one on meta",
    ),
    "zero temperature": (
        lambda h, w, y: ((h, w, y), {"temperature": 0.0}),
        ValueError,
        "temperature: expected a number above 0, got 0",
    ),
    "temperatures of another size": (
        lambda h, w, y: ((h, w, y), {"temperature": torch.ones(5)}),
        ValueError,
        r"temperature: expected T = 4 in shape \[T\], got \[5\]",
    ),
    "temperatures of another dtype": (
        lambda h, w, y: ((h, w, y), {"temperature": torch.ones(4, dtype=torch.float64)}),
        TypeError,
        "temperature: expected dtype float32, got float64",
    ),
    "negative softcap": (
        lambda h, w, y: ((h, w, y), {"softcap": -1.0}),
        ValueError,
        "softcap: expected a number above 0, got -1",
    ),
    "not a tensor": (
        lambda h, w, y: ((h, w, [1, 2, 3, 4]), {}),
        TypeError,
        r"target: expected a tensor of shape \[T\], got list",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(make, error: type[Exception], message: str) -> None:
    args, options = make(torch.zeros(4, 8), torch.zeros(10, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(error, match=message):
        r1kernels.linear_logprob(*args, **options)


def test_entropy_without_a_gradient_keeps_the_cheap_regimes() -> None:
    hidden, weight, target = problem(60, 32, 300, torch.float32)
    plain = r1kernels.linear_logprob(hidden, weight, target, entropy=True)
    for head, regime in ((weight, "kept"), (weight.detach(), "frozen_head")):
        logprob, entropy, chosen = module.head_logprob(
            "test", hidden, head, target, None, 1.0, 1.0, None, True, entropy_grad=False
        )
        assert chosen == regime
        assert not entropy.requires_grad
        torch.testing.assert_close(entropy, plain.entropy, rtol=1e-5, atol=1e-6)
        hidden.grad = None
        logprob.sum().backward()
        expected = torch.autograd.grad(plain.logprob.sum(), hidden, retain_graph=True)
        torch.testing.assert_close(hidden.grad, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_second_backward_gives_the_same_bits(dtype: torch.dtype) -> None:
    hidden, weight, target = problem(100, 32, 1000, dtype)
    total = r1kernels.linear_logprob(hidden, weight, target).logprob.sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(total, (hidden, weight))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
