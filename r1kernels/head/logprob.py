"""Log-probabilities and entropies of given logits, without a second [T, V] tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.once import inputs_of, once
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.head import head
from r1kernels.head.head import NO_IGNORE, LogProb


def logprob(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    inplace_backward: bool = False,
) -> LogProb:
    """log softmax(z)[target] with z = softcap·tanh(logit_scale·logits/softcap)/temperature.

    One read of the logits, no copy of them in float32. A row whose upstream gradient is zero gets
    a zero gradient, whatever its logits are; a NaN or +inf among them makes the results of the row
    NaN.

    Args:
        logits: [T, V], float32, bfloat16, float16 or float64; −inf removes a token.
        target: [T], int64 or int32, values in [0, V).
        temperature: divides the logits last, finite and above 0: a number, or one a row, [T],
            float32 (float64 for float64), whose values are checked on a CPU and in ``checked()``.
        logit_scale: multiplies the logits first (Cohere, Granite).
        softcap: bound of the logits before the temperature (Gemma); None for none.
        entropy: return the entropy of each row's distribution too.
        inplace_backward: write the gradient over the logits, which saves a second [T, V] tensor
            on CUDA. The backward pass leaves the gradient in ``logits``; an operation that needs
            them in its own backward pass after that raises PyTorch's "modified by an inplace
            operation". The logits must not be a leaf. ``torch.compile`` runs the caller
            eagerly, or raises with ``fullgraph=True``.

    Returns:
        ``LogProb(logprob [T], entropy [T] or None)``, float32 (float64 for float64), in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(logits, target, logit_scale, softcap, entropy, inplace_backward, temperature)
    rows = head.row_temperature(temperature, logits)
    inplace = inplace_backward and logits.requires_grad and torch.is_grad_enabled()
    run = _in_place if inplace else LOGPROB
    value, entropies, _ = run(logits, target, rows, logit_scale, softcap, entropy)
    return LogProb(value, entropies if entropy else None)


@remembered
def _check(
    logits: Tensor,
    target: Tensor,
    logit_scale: float,
    softcap: float | None,
    entropy: bool,
    inplace_backward: bool,
    temperature: float | Tensor,
) -> None:
    shapes = check.Shapes("logprob", check.PACK)
    shapes("logits", logits, "T V", check.FLOATS)
    shapes("target", target, "T", check.INTS)
    head.check_options("logprob", logit_scale, softcap)
    check.flag("logprob", "entropy", entropy)
    check.flag("logprob", "inplace_backward", inplace_backward)
    head.check_temperature(shapes, temperature, logits)


def _in_place(logits: Tensor, *args: Any) -> Any:
    if torch.compiler.is_compiling():
        raise RuntimeError("logprob: inplace_backward: expected eager mode, got torch.compile")
    if logits.is_leaf:  # its .grad would be itself
        raise ValueError("logprob: inplace_backward: expected logits that are computed, got a leaf")
    return _InPlace.apply(logits, *args)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        output = LOGPROB(*args)
        ctx.inputs = inputs_of(args)
        _save(ctx, LOGPROB.bind(args), output)
        return output

    @staticmethod
    @once("logprob")
    def backward(ctx: Any, dlogprob: Tensor, dentropy: Tensor, *_: Any) -> tuple[Any, ...]:
        logits, *saved = ctx.saved_tensors
        LOGPROB_BACKWARD_(dlogprob, dentropy, logits, *saved, *ctx.options)
        # A kernel writes behind autograd's back; whoever else has saved the logits must notice.
        torch.autograd.graph.increment_version(logits)
        return LOGPROB.gradients(logits=logits.detach())


def _scaled(logits: Tensor, *options: Any) -> Tensor:
    return head.scale(logits.to(head.accumulate_dtype(logits.dtype)), *options)


def _reference(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z = _scaled(logits, temperature, logit_scale, softcap)
    return head.statistics(z, target, NO_IGNORE, want_entropy)


def _fake(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], head.accumulate_dtype(logits.dtype)
    return (
        logits.new_empty(rows, dtype=dtype),
        logits.new_empty(rows if want_entropy else 0, dtype=dtype),
        logits.new_empty(rows, dtype=dtype),
    )


def _validate(logits: Tensor, target: Tensor, temperature: Tensor | None, *_: Any) -> None:
    head.check_rows("logprob", logits.shape[1], temperature)
    check.in_range("logprob", "target", target, logits.shape[1])


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    _, entropy, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.options = inputs.logit_scale, inputs.softcap
    ctx.save_for_backward(inputs.logits, inputs.target, lse, entropy, inputs.temperature)


def _backward(ctx: Any, dlogprob: Tensor, dentropy: Tensor, *_: Any) -> tuple[Any, ...]:
    dlogits = LOGPROB_BACKWARD(dlogprob, dentropy, *ctx.saved_tensors, *ctx.options)
    return LOGPROB.gradients(logits=dlogits)


def _backward_reference(
    dlogprob: Tensor,
    dentropy: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    z = _scaled(logits, temperature, logit_scale, softcap)
    dlogits = head.statistics_backward(dlogprob, dentropy, z, target, lse, entropy, NO_IGNORE)
    dlogits = head.scale_backward(dlogits, z, temperature, logit_scale, softcap)
    return dlogits.to(logits.dtype)


def _backward_in_place(dlogprob: Tensor, dentropy: Tensor, logits: Tensor, *rest: Any) -> None:
    logits.copy_(LOGPROB_BACKWARD(dlogprob, dentropy, logits, *rest))


def _backward_fake(dlogprob: Tensor, dentropy: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _case(
    name: str,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    options: tuple[float | None, float, float | None] = (None, 1.0, None),
    entropy: bool = False,
    removed: bool = False,
    bench: bool | str = False,
) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + columns)
        logits = 3 * torch.randn(rows, columns, generator=rng)
        target = torch.randint(columns, (rows,), generator=rng)
        if removed:
            logits[torch.rand(rows, columns, generator=rng) < 0.5] = -torch.inf
            logits.scatter_(1, target[:, None], 1.0)
        base, logit_scale, softcap = options
        temperature = None
        if base is not None:
            temperature = base + torch.rand(rows, generator=rng).to(device)
        logits, target = logits.to(device, dtype), target.to(device)
        return logits, target, temperature, logit_scale, softcap, entropy

    size = rows * columns
    return Case(name, make, flops=6.0 * size, bytes=float(dtype.itemsize * size), bench=bench)


CAPPED = (0.7, 1.5, 3.0)
CASES = (
    _case("fp32", 33, 250),
    _case("bf16", 40, 1000, torch.bfloat16),
    _case("odd sizes", 7, 131, torch.bfloat16, entropy=True),
    _case("one row", 1, 70),
    _case("one column", 5, 1, entropy=True),
    _case("no rows", 0, 70),
    _case("all options", 50, 301, options=CAPPED, entropy=True),
    _case("all options bf16", 50, 301, torch.bfloat16, options=CAPPED, entropy=True),
    _case("removed tokens", 20, 97, entropy=True, removed=True),
    _case("vocabulary", 1024, 49152, torch.bfloat16, bench="cpu"),
    _case("vocabulary entropy", 1024, 49152, torch.bfloat16, entropy=True, bench="cpu"),
    _case("large vocabulary", 4096, 151936, torch.bfloat16, bench="cuda"),
    _case("large vocabulary entropy", 4096, 151936, torch.bfloat16, entropy=True, bench="cuda"),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        a = LOGPROB.bind(case.make(device))
        _, entropies, lse = _reference(*a)
        rng = torch.Generator().manual_seed(1)
        dlogprob = torch.randn(lse.shape, generator=rng).to(lse)
        dentropy = torch.randn(entropies.shape, generator=rng).to(lse)
        dlogprob[1::4] = 0  # rows that are skipped
        dentropy[1::4] = 0
        return (
            dlogprob, dentropy, a.logits, a.target, lse, entropies, a.temperature, a.logit_scale,
            a.softcap,
        )  # fmt: skip

    return Case(case.name, make, flops=case.flops, bytes=1.75 * case.bytes, bench=case.bench)


LOGPROB = Op(
    "logprob(Tensor logits, Tensor target, Tensor? temperature, float logit_scale, float? softcap, "
    "bool want_entropy) -> (Tensor logprob, Tensor entropy, Tensor lse)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.head.triton.logprob",
)
LOGPROB_BACKWARD = Op(
    "logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor logits, Tensor target, Tensor lse, "
    "Tensor entropy, Tensor? temperature, float logit_scale, float? softcap) -> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=tuple(_backward_case(case) for case in CASES),
    triton="r1kernels.head.triton.logprob",
)
# The same with its result in the logits: no second [T, V] where a backend has it natively.
LOGPROB_BACKWARD_ = Op(
    "logprob_backward_(Tensor dlogprob, Tensor dentropy, Tensor(a!) logits, Tensor target, "
    "Tensor lse, Tensor entropy, Tensor? temperature, float logit_scale, float? softcap) -> ()",
    reference=_backward_in_place,
    fake=lambda *args: None,
    triton="r1kernels.head.triton.logprob",
)
