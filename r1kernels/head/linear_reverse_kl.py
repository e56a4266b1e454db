"""The reverse KL divergence of a student from a teacher: the logits of neither exist whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.head import head
from r1kernels.head.kept_memory import rows_that_fit
from r1kernels.head.linear_logprob_op import KEPT_STATE, TILE_ROWS, tile_row_bytes

NAME = "linear_reverse_kl"
KEPT_MATRICES = 2  # of a kept tile: exponentials, and what they are multiplied with
OPTIONS = ("logit_scale", "softcap", "teacher_logit_scale", "teacher_softcap")


class ReverseKL(NamedTuple):
    """The divergence of each row, and the entropy of the student that is found on the way."""

    kl: Tensor
    """[T] float32 (float64 for float64 hidden), in nats."""
    entropy: Tensor
    """[T], the same, of the student's distribution; without a gradient."""


def linear_reverse_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_softcap: float | None = None,
    vocab_size: int | None = None,
) -> ReverseKL:
    """KL(p ‖ q) = Σ_v p(v)·(log p(v) − log q(v)), p the student's and q the teacher's softmax.

    Of the logits z = cap(logit_scale·(hidden·weightᵀ + bias))/temperature, as ``linear_logprob``
    has them, and the same of the teacher. It is the loss of on-policy distillation: of MiniLLM
    (arXiv 2306.08543) and, on the student's own tokens, of GKD with beta = 1 (arXiv 2306.13649).

    The products are accumulated in float32 and enter the sums unrounded. Extra memory is bounded
    whatever T and V are: ``kept_memory`` says by what. The backward pass makes both heads' logits
    again where nothing was kept of them: for the rows beyond that, with a softcap, and on a GPU.
    Rows whose upstream gradient is zero cost nothing there. Gradients flow to hidden, weight and
    bias; the teacher has none. Of a teacher that is the student, divergence and gradients are
    exactly zero.

    Args:
        hidden: [T, H] of the student, float32, bfloat16, float16 or float64.
        weight: [V, H], dtype of hidden: the ``lm_head.weight`` of HuggingFace models.
        teacher_hidden: [T, Ht] of the teacher at the same tokens, any of those dtypes.
        teacher_weight: [V, Ht], dtype of teacher_hidden, of the same vocabulary.
        bias, teacher_bias: [V], dtype of the weight they belong to.
        temperature: divides the logits of both last, finite and above 0: a number, or one a row,
            [T], float32 (float64 for float64).
        logit_scale, softcap, teacher_logit_scale, teacher_softcap: see ``linear_logprob``.
        vocab_size: ids from here on are padding of the weights, which then may have different V:
            they have no probability and no gradient. Default: none is.

    Returns:
        ``ReverseKL(kl [T], entropy [T])``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; so does a
            teacher that requires a gradient.
    """
    hidden, weight, bias = autocast.cast(hidden, weight, bias)
    teacher_hidden, teacher_weight, teacher_bias = autocast.cast(
        teacher_hidden, teacher_weight, teacher_bias
    )
    _check(
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, temperature,
        logit_scale, softcap, teacher_logit_scale, teacher_softcap, vocab_size,
    )  # fmt: skip
    if torch.is_grad_enabled():
        _check_constant(teacher_hidden, teacher_weight, teacher_bias)
    if vocab_size is not None:
        weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]
        teacher_weight = teacher_weight[:vocab_size]
        teacher_bias = None if teacher_bias is None else teacher_bias[:vocab_size]
    trained = any(given is not None and given.requires_grad for given in (hidden, weight, bias))
    kept_rows = 0
    if trained and torch.is_grad_enabled() and softcap is None and not hidden.is_cuda:
        kept_rows = rows_that_fit(hidden, weight, KEPT_MATRICES)
    kl, entropy, *_ = LINEAR_REVERSE_KL(
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias,
        head.row_temperature(temperature, hidden), logit_scale, softcap, teacher_logit_scale,
        teacher_softcap, kept_rows,
    )  # fmt: skip
    return ReverseKL(kl, entropy)


@remembered
def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    teacher_logit_scale: float,
    teacher_softcap: float | None,
    vocab_size: int | None,
) -> None:
    shapes = check.Shapes(NAME, check.PACK)
    shapes("hidden", hidden, "T H", check.FLOATS)
    shapes("weight", weight, "V H", (hidden.dtype,))
    if bias is not None:
        shapes("bias", bias, "V", (hidden.dtype,))
    shapes("teacher_hidden", teacher_hidden, "T Ht", check.FLOATS)
    # Of its own V where padding may differ.
    columns = "V" if vocab_size is None else "Vt"
    shapes("teacher_weight", teacher_weight, f"{columns} Ht", (teacher_hidden.dtype,))
    if teacher_bias is not None:
        shapes("teacher_bias", teacher_bias, columns, (teacher_hidden.dtype,))
    head.check_options(NAME, logit_scale, softcap)
    head.check_options(NAME, teacher_logit_scale, teacher_softcap, of="teacher_")
    if vocab_size is not None:
        least = min(shapes.sizes["V"], shapes.sizes["Vt"])
        if check.count(NAME, "vocab_size", vocab_size) > least:
            raise ValueError(
                f"{NAME}: vocab_size: expected at most the V = {least} rows that weight and "
                f"teacher_weight both have, got {vocab_size}"
            )
    head.check_temperature(shapes, temperature, hidden)


def _check_constant(*teacher: Tensor | None) -> None:
    names = ("teacher_hidden", "teacher_weight", "teacher_bias")
    for name, tensor in zip(names, teacher, strict=True):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{NAME}: {name}: expected no gradient to be required of the teacher: compute it "
                "under torch.no_grad(), or .detach() it"
            )


def _fake(*args: Any) -> tuple[Tensor, ...]:
    a = LINEAR_REVERSE_KL.bind(args)
    rows, dtype = a.hidden.shape[0], head.accumulate_dtype(a.hidden.dtype)
    return *(a.hidden.new_empty(rows, dtype=dtype) for _ in range(4)), nothing_kept(
        a.hidden, a.weight, a.kept_rows
    )


def nothing_kept(hidden: Tensor, weight: Tensor, kept_rows: int) -> Tensor:
    """The private memory of a backend, of one that keeps nothing in it."""
    tiles = kept_rows // TILE_ROWS * KEPT_MATRICES * tile_row_bytes(hidden, weight)
    kept = hidden.new_empty(tiles + KEPT_STATE, dtype=torch.uint8)
    kept[-KEPT_STATE:] = 0
    return kept


def _logits(a: Any) -> tuple[Tensor, Tensor]:
    """The scaled logits of student and teacher, [T, V] each, in the student's precision."""
    z = head.logits(a.hidden, a.weight, a.bias)
    teacher = head.logits(a.teacher_hidden, a.teacher_weight, a.teacher_bias).to(z.dtype)
    return (
        head.scale(z, a.temperature, a.logit_scale, a.softcap),
        head.scale(teacher, a.temperature, a.teacher_logit_scale, a.teacher_softcap),
    )


def _lse(z: Tensor) -> Tensor:
    lse = z.logsumexp(-1)
    return lse.masked_fill(lse == torch.inf, torch.nan)


def _reference(*args: Any) -> tuple[Tensor, ...]:
    a = LINEAR_REVERSE_KL.bind(args)
    z, teacher = _logits(a)
    lse, teacher_lse = _lse(z), _lse(teacher)
    logp, logq = z - lse[:, None], teacher - teacher_lse[:, None]
    p = logp.exp()
    kl = (p * (logp - logq).where(p != 0, 0)).sum(-1)
    entropy = -(p * logp.where(p != 0, 0)).sum(-1)
    return kl, entropy, lse, teacher_lse, nothing_kept(a.hidden, a.weight, a.kept_rows)


def _validate(*args: Any) -> None:
    a = LINEAR_REVERSE_KL.bind(args)
    head.check_rows(NAME, a.weight.shape[0], a.temperature)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    kl, entropy, lse, teacher_lse, kept = output
    ctx.set_materialize_grads(False)  # zeros for `kept` would cost as much as it does
    ctx.mark_non_differentiable(entropy, lse, teacher_lse, kept)
    given = inputs._asdict()
    del given["kept_rows"]
    options = {name: given.pop(name) for name in OPTIONS}
    tensors = {"kl": kl, "lse": lse, "teacher_lse": teacher_lse, "kept": kept, **given}
    head.save(ctx, tensors, **options)


def _backward(ctx: Any, dkl: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dkl is None:
        return LINEAR_REVERSE_KL.gradients()
    return head.gradients(ctx, LINEAR_REVERSE_KL, LINEAR_REVERSE_KL_BACKWARD, dkl=dkl)


def _backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = LINEAR_REVERSE_KL_BACKWARD.bind(args)
    return head.empty_gradients(a.hidden, a.weight, a.need_hidden, a.need_weight, a.need_bias)


def _backward_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """∂KL/∂z(v) = p(v)·(log p(v) − log q(v) − KL)."""
    a = LINEAR_REVERSE_KL_BACKWARD.bind(args)
    z, teacher = _logits(a)
    logp, logq = z - a.lse[:, None], teacher - a.teacher_lse[:, None]
    p = logp.exp()
    dlogits = a.dkl[:, None] * p * (logp - logq - a.kl[:, None]).where(p != 0, 0)
    skipped = (a.dkl == 0)[:, None]
    dlogits = dlogits.masked_fill(skipped, 0)
    dlogits = head.scale_backward(dlogits, z, a.temperature, a.logit_scale, a.softcap)
    dhidden, dweight, dbias = head.empty_gradients(
        a.hidden, a.weight, a.need_hidden, a.need_weight, a.need_bias
    )
    narrow = dlogits.to(a.weight.dtype)
    if a.need_hidden:
        dhidden = (narrow @ a.weight).masked_fill(skipped, 0)
    if a.need_weight:
        dweight = narrow.T @ a.hidden.masked_fill(skipped, 0)
    if a.need_bias:
        dbias = dlogits.sum(0).to(a.weight.dtype)
    return dhidden, dweight, dbias


def _case(
    name: str,
    rows: int,
    widths: tuple[int, int],
    columns: int,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    *,
    bias: bool = False,
    base: float | None = None,
    options: tuple[float, float | None, float, float | None] = (1.0, None, 1.0, None),
    kept_rows: int = 0,
    bench: bool | str = False,
) -> tuple[Case, float]:
    """A case, and the operations of a product with the student's head."""

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + columns + sum(widths))

        def side(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
            hidden = torch.randn(rows, width, generator=rng)
            weight = torch.randn(columns, width, generator=rng) / width**0.5
            offset = torch.randn(columns, generator=rng).to(device, dtype) if bias else None
            return hidden.to(device, dtype), weight.to(device, dtype), offset

        student, teacher = side(widths[0], dtype), side(widths[1], teacher_dtype or dtype)
        temperature = None
        if base is not None:
            temperature = base + torch.rand(rows, generator=rng).to(device)
        return *student, *teacher, temperature, *options, kept_rows

    case = Case(
        name,
        make,
        flops=2.0 * rows * columns * sum(widths),
        bytes=float(dtype.itemsize * sum(widths) * (rows + columns)),
        bench=bench,
    )
    return case, 2.0 * rows * columns * widths[0]


BF16 = torch.bfloat16
SCALED = (1.5, 3.0, 0.5, 5.0)
MADE = (
    _case("fp32", 33, (64, 48), 250),
    _case("bf16", 100, (96, 128), 1000, BF16),
    _case("odd sizes", 7, (33, 17), 131, BF16),
    _case("one row", 1, (16, 8), 70),
    _case("no rows", 0, (16, 8), 70),
    _case("one column", 5, (16, 8), 1),
    _case("all options", 50, (48, 40), 301, bias=True, base=0.7, options=SCALED),
    _case("all options bf16", 50, (47, 64), 301, BF16, bias=True, base=0.7, options=SCALED),
    _case("bf16 teacher", 50, (40, 64), 333, torch.float32, BF16, base=0.5),
    _case("fp32 teacher", 50, (40, 64), 333, BF16, torch.float32),
    _case("several stripes", 20, (24, 16), 1100, base=0.6),
    _case("kept", 50, (40, 24), 333, base=0.6, kept_rows=TILE_ROWS),
    _case("lm_head", 1024, (576, 960), 49152, BF16, bench="cpu"),
    _case("lm_head fp32", 512, (576, 960), 49152, bench="cpu"),
    _case("large vocabulary", 512, (896, 1536), 151936, BF16, bench="cpu"),
    _case("large head", 4096, (1536, 3584), 151936, BF16, bench="cuda"),
)
CASES = tuple(case for case, _ in MADE)


def _backward_case(case: Case, product: float) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        inputs = case.make(device)
        kl, _, lse, teacher_lse, kept = _reference(*inputs)
        dkl = torch.randn(kl.shape, generator=torch.Generator().manual_seed(1)).to(kl)
        dkl[1::4] = 0  # rows that are skipped
        has_bias = inputs[2] is not None
        return dkl, kl, lse, teacher_lse, kept, *inputs[:-1], True, True, has_bias

    # Three quarters of the rows: both heads' logits again, gradients of hidden and of weight.
    flops = 0.75 * (case.flops + 2 * product)
    return Case(case.name, make, flops=flops, bytes=2 * case.bytes, bench=case.bench)


# Of one column the gradient is nothing but the rounding of what the forward pass gave, and what one
# backend kept is no other's.
ONE_WAY = ("one column", "kept")

LINEAR_REVERSE_KL = Op(
    "linear_reverse_kl(Tensor hidden, Tensor weight, Tensor? bias, Tensor teacher_hidden, "
    "Tensor teacher_weight, Tensor? teacher_bias, Tensor? temperature, float logit_scale, "
    "float? softcap, float teacher_logit_scale, float? teacher_softcap, SymInt kept_rows) "
    "-> (Tensor kl, Tensor entropy, Tensor lse, Tensor teacher_lse, Tensor kept)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    opaque=(4,),
    triton="r1kernels.head.triton.linear_reverse_kl",
)
LINEAR_REVERSE_KL_BACKWARD = Op(
    "linear_reverse_kl_backward(Tensor dkl, Tensor kl, Tensor lse, Tensor teacher_lse, "
    "Tensor kept, Tensor hidden, Tensor weight, Tensor? bias, Tensor teacher_hidden, "
    "Tensor teacher_weight, Tensor? teacher_bias, Tensor? temperature, float logit_scale, "
    "float? softcap, float teacher_logit_scale, float? teacher_softcap, bool need_hidden, "
    "bool need_weight, bool need_bias) -> (Tensor dhidden, Tensor dweight, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=tuple(_backward_case(*made) for made in MADE if made[0].name not in ONE_WAY),
    triton="r1kernels.head.triton.linear_reverse_kl",
)
