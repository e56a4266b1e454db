"""The ops behind linear_logprob: log-probabilities from a linear head, and their backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.head import head

# A backend may keep the unnormalised probabilities of some rows for the backward pass, in tiles of
# this many rows and columns.
TILE_ROWS, TILE_COLS = 48, 64
KEPT_STATE = 64  # bytes after the tiles: whether they are still there


def tile_row_bytes(hidden: Tensor, weight: Tensor) -> int:
    """Bytes of TILE_ROWS kept rows: a tile is its elements and then one fp32 maximum a row."""
    element = min(hidden.element_size(), 4)
    return -(-weight.shape[0] // TILE_COLS) * TILE_ROWS * (TILE_COLS * element + 4)


def _outputs(
    hidden: Tensor, weight: Tensor, want_entropy: bool, kept_rows: int, frozen_head: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = hidden.shape[0], head.accumulate_dtype(hidden.dtype)
    return (
        hidden.new_empty(rows, dtype=dtype),
        hidden.new_empty(rows if want_entropy else 0, dtype=dtype),
        hidden.new_empty(rows, dtype=dtype),
        hidden.new_empty(
            kept_rows // TILE_ROWS * tile_row_bytes(hidden, weight) + KEPT_STATE, dtype=torch.uint8
        ),
        hidden.new_empty((rows if frozen_head else 0, hidden.shape[1]), dtype=dtype),
    )


def _fake(*args: Any) -> tuple[Tensor, ...]:
    a = LINEAR_LOGPROB.bind(args)
    return _outputs(a.hidden, a.weight, a.want_entropy, a.kept_rows, a.frozen_head)


def _reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
    entropy_grad: bool,
    kept_rows: int,
    frozen_head: bool,
    ignore_index: int,
    sharded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, _, _, kept, dhidden = _outputs(hidden, weight, want_entropy, kept_rows, frozen_head)
    kept[-KEPT_STATE:] = 0  # no tile is there
    z = head.scale(head.logits(hidden, weight, bias), temperature, logit_scale, softcap)
    logprob, entropy, lse = head.statistics(z, target, ignore_index, want_entropy, sharded)
    if frozen_head:
        dlogits = head.statistics_backward(
            torch.ones_like(logprob), entropy.new_empty(0), z, target, lse, entropy, ignore_index,
            sharded,
        )  # fmt: skip
        dlogits = head.scale_backward(dlogits, z, temperature, logit_scale, softcap)
        counted = head.counted(target, ignore_index)
        if keep is not None:
            counted = counted & keep
        dlogits = dlogits.where(counted[:, None], 0)
        dhidden = (dlogits.to(weight.dtype) @ weight).to(dlogits.dtype).where(counted[:, None], 0)
    return logprob, entropy, lse, kept, dhidden


def _validate(*args: Any) -> None:
    a = LINEAR_LOGPROB.bind(args)
    columns = a.weight.shape[0]
    head.check_rows("linear_logprob", columns, a.temperature)
    if not a.sharded:
        check.in_range("linear_logprob", "target", a.target, columns, ignore=a.ignore_index)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    logprob, entropy, lse, kept, dhidden = output
    ctx.set_materialize_grads(False)  # zeros for `kept` would cost as much as it does
    constants = (lse, kept, dhidden) if inputs.entropy_grad else (entropy, lse, kept, dhidden)
    ctx.mark_non_differentiable(*constants)
    ctx.frozen_head, ctx.dtype = inputs.frozen_head, inputs.hidden.dtype
    if inputs.frozen_head:
        ctx.save_for_backward(dhidden)
        return
    tensors = {
        "hidden": inputs.hidden, "weight": inputs.weight, "target": inputs.target,
        "bias": inputs.bias, "keep": inputs.keep, "logprob": logprob, "lse": lse,
        "entropy": entropy, "kept": kept, "temperature": inputs.temperature,
    }  # fmt: skip
    head.save(
        ctx, tensors, logit_scale=inputs.logit_scale, softcap=inputs.softcap,
        entropy_grad=inputs.entropy_grad, ignore_index=inputs.ignore_index, sharded=inputs.sharded,
    )  # fmt: skip


def _backward(
    ctx: Any, dlogprob: Tensor | None, dentropy: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    if dlogprob is None and dentropy is None:
        return LINEAR_LOGPROB.gradients()
    if ctx.frozen_head:
        (dhidden,) = ctx.saved_tensors
        assert dlogprob is not None  # the only output with a gradient
        product = (dlogprob[:, None] * dhidden).masked_fill_((dlogprob == 0)[:, None], 0)
        return LINEAR_LOGPROB.gradients(hidden=product.to(ctx.dtype))
    upstream = head.both(dlogprob, dentropy)
    return head.gradients(ctx, LINEAR_LOGPROB, LINEAR_LOGPROB_BACKWARD, **upstream)


def _backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = LINEAR_LOGPROB_BACKWARD.bind(args)
    return head.empty_gradients(a.hidden, a.weight, a.need_hidden, a.need_weight, a.need_bias)


def _backward_reference(
    dlogprob: Tensor,
    dentropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    logprob: Tensor,
    lse: Tensor,
    entropy: Tensor,
    kept: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    entropy_grad: bool,
    ignore_index: int,
    sharded: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z = head.scale(head.logits(hidden, weight, bias), temperature, logit_scale, softcap)
    dlogits = head.statistics_backward(
        dlogprob, dentropy, z, target, lse, entropy, ignore_index, sharded
    )
    dlogits = head.scale_backward(dlogits, z, temperature, logit_scale, softcap)
    dhidden, dweight, dbias = head.empty_gradients(
        hidden, weight, need_hidden, need_weight, need_bias
    )
    narrow = dlogits.to(weight.dtype)
    skipped = ~head.with_gradient(dlogprob, dentropy, target, ignore_index)[:, None]
    if need_hidden:
        dhidden = (narrow @ weight).masked_fill(skipped, 0)
    if need_weight:
        dweight = narrow.T @ hidden.masked_fill(skipped, 0)
    if need_bias:
        dbias = dlogits.sum(0).to(weight.dtype)
    return dhidden, dweight, dbias


def _case(
    name: str,
    rows: int,
    width: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    options: tuple[float | None, float, float | None] = (None, 1.0, None),
    entropy: bool = False,
    frozen_head: bool = False,
    ignored: bool = False,
    sharded: bool = False,
    bench: bool | str = False,
) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + width + columns)
        hidden = torch.randn(rows, width, generator=rng).to(device, dtype)
        weight = (torch.randn(columns, width, generator=rng) / width**0.5).to(device, dtype)
        target = torch.randint(columns, (rows,), generator=rng).to(device)
        offset = torch.randn(columns, generator=rng).to(device, dtype) if bias else None
        if ignored:
            target[::3] = -100
        if sharded:
            target[1::2] += columns
        base, logit_scale, softcap = options
        temperature = None
        if base is not None:
            temperature = base + torch.rand(rows, generator=rng).to(device)
        return (
            hidden, weight, target, offset, None, temperature, logit_scale, softcap, entropy,
            entropy, 0, frozen_head, -100 if ignored else head.NO_IGNORE, sharded,
        )  # fmt: skip

    product = 2.0 * rows * width * columns
    size = dtype.itemsize
    return Case(
        name,
        make,
        flops=product * (2 if frozen_head else 1),
        bytes=size * width * (rows + columns) + 8.0 * rows,
        bench=bench,
    )


CAPPED = (0.7, 1.5, 3.0)
CASES = (
    _case("fp32", 33, 64, 250),
    _case("bf16", 100, 96, 1000, torch.bfloat16),
    _case("odd sizes", 7, 33, 131, torch.bfloat16),
    _case("one row", 1, 16, 70),
    _case("no rows", 0, 16, 70),
    _case("all options", 50, 48, 301, bias=True, options=CAPPED, entropy=True),
    _case("all options bf16", 50, 47, 301, torch.bfloat16, bias=True, options=CAPPED, entropy=True),
    _case("frozen head", 50, 40, 333, frozen_head=True),
    _case(
        "frozen head softcap bf16", 61, 40, 333, torch.bfloat16, options=CAPPED, frozen_head=True
    ),
    _case("frozen head entropy", 50, 40, 333, entropy=True, frozen_head=True),
    _case("ignored rows", 50, 40, 333, ignored=True),
    _case("shard", 50, 40, 333, entropy=True, ignored=True, sharded=True),
    _case("shard frozen head bf16", 50, 40, 333, torch.bfloat16, frozen_head=True, sharded=True),
    _case("lm_head", 1024, 576, 49152, torch.bfloat16, bench="cpu"),
    _case("lm_head frozen", 1024, 576, 49152, torch.bfloat16, frozen_head=True, bench="cpu"),
    _case("large head", 4096, 4096, 128256, torch.bfloat16, bench="cuda"),
    _case("large head frozen", 4096, 4096, 128256, torch.bfloat16, frozen_head=True, bench="cuda"),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        inputs = case.make(device)
        a = LINEAR_LOGPROB.bind(inputs)
        logprob, entropies, lse, kept, _ = _reference(*inputs)
        rng = torch.Generator().manual_seed(1)
        dlogprob = torch.randn(lse.shape, generator=rng).to(lse)
        dlogprob[1::4] = 0  # rows that are skipped
        dentropy = torch.randn(entropies.shape, generator=rng).to(lse)
        return (
            dlogprob, dentropy, a.hidden, a.weight, a.target, a.bias, a.keep, logprob, lse,
            entropies, kept, a.temperature, a.logit_scale, a.softcap, a.entropy_grad,
            a.ignore_index, a.sharded, True, True, a.bias is not None,
        )  # fmt: skip

    # Three quarters of the rows: logits again, gradient of hidden, gradient of weight.
    return Case(
        case.name, make, flops=0.75 * 3 * case.flops, bytes=2 * case.bytes, bench=case.bench
    )


LINEAR_LOGPROB = Op(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor? keep, "
    "Tensor? temperature, float logit_scale, float? softcap, bool want_entropy, "
    "bool entropy_grad, SymInt kept_rows, bool frozen_head, int ignore_index, bool sharded) "
    "-> (Tensor logprob, Tensor entropy, Tensor lse, Tensor kept, Tensor dhidden)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    opaque=(3,),
    triton="r1kernels.head.triton.linear_logprob",
)
LINEAR_LOGPROB_BACKWARD = Op(
    "linear_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, "
    "Tensor target, Tensor? bias, Tensor? keep, Tensor logprob, Tensor lse, Tensor entropy, "
    "Tensor kept, Tensor? temperature, float logit_scale, float? softcap, bool entropy_grad, "
    "int ignore_index, bool sharded, bool need_hidden, bool need_weight, bool need_bias) "
    "-> (Tensor dhidden, Tensor dweight, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=tuple(_backward_case(case) for case in CASES if "frozen" not in case.name),
    triton="r1kernels.head.triton.linear_logprob",
)
