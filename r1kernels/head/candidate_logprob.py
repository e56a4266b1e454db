"""The op behind linear_logprob with candidates: a row's softmax runs over a few ids of its own.

The N products, one for each candidate, are gathered from the weight; no other logit is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.head import head

PAIRS_AT_ONCE = 1 << 24  # elements of gathered rows that the reference holds


class Segments:
    """Reductions over each row's stretch of [N] values, deterministic on every device."""

    def __init__(self, offsets: Tensor, count: int) -> None:
        self.offsets, self.count = offsets.long(), count  # N: without it a GPU would be waited for
        self.counts = self.offsets.diff()

    def spread(self, values: Tensor) -> Tensor:
        """[T] → [N], the value of each candidate's row."""
        return values.repeat_interleave(self.counts, output_size=self.count)

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """[N] → [T]"""
        return torch.segment_reduce(values, how, offsets=self.offsets)

    def weighted_rows(self, table: Tensor, index: Tensor, factor: Tensor) -> Tensor:
        """[T, H]: Σ over the row's stretch of factor·table[index], in bounded memory."""
        total = factor.new_zeros(self.counts.shape[0], table.shape[1])
        for begin, end in _pieces(index.shape[0], table.shape[1]):
            part = table[index[begin:end]].to(factor.dtype) * factor[begin:end, None]
            offsets = self.offsets.clamp(begin, end) - begin
            total += torch.segment_reduce(part, "sum", offsets=offsets)
        return total


def _pieces(count: int, width: int) -> list[tuple[int, int]]:
    step = max(PAIRS_AT_ONCE // max(width, 1), 1)
    return [(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    candidate_ids: Tensor,
    candidate_offsets: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = Segments(candidate_offsets, candidate_ids.shape[0])
    dtype = head.accumulate_dtype(hidden.dtype)
    row = rows.spread(torch.arange(hidden.shape[0], device=hidden.device))
    logits = hidden.new_empty(row.shape, dtype=dtype)
    for begin, end in _pieces(row.shape[0], hidden.shape[1]):
        pairs = slice(begin, end)
        products = hidden[row[pairs]].to(dtype) * weight[candidate_ids[pairs]].to(dtype)
        logits[pairs] = products.sum(-1)
    if bias is not None:
        logits += bias[candidate_ids].to(dtype)
    valid = head.counted(target, ignore_index)
    logits = logits.where(rows.spread(valid), 0)

    z = _scaled(logits, rows, temperature, logit_scale, softcap)
    top = rows.reduce(z, "max").where(valid & (rows.counts > 0), 0)
    lse = top + rows.reduce((z - rows.spread(top)).exp(), "sum").log()
    target_logit = rows.reduce(z.where(candidate_ids == rows.spread(target), 0), "sum")
    entropy = z.new_empty(0)
    if want_entropy:
        p = (z - rows.spread(lse)).exp()
        entropy = lse - rows.reduce(p * z.where(p > 0, 0), "sum")
        entropy = entropy.where(valid, 0)
    return (target_logit - lse).where(valid, 0), entropy, lse.where(valid, 0), logits


def _scaled(
    logits: Tensor,
    rows: Segments,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    of_candidate = None if temperature is None else rows.spread(temperature)
    return head.scale(logits[:, None], of_candidate, logit_scale, softcap)[:, 0]


def _fake(*args: Any) -> tuple[Tensor, ...]:
    a = CANDIDATE_LOGPROB.bind(args)
    rows, dtype = a.hidden.shape[0], head.accumulate_dtype(a.hidden.dtype)
    sizes = rows, rows if a.want_entropy else 0, rows, a.candidate_ids.shape[0]
    return tuple(a.hidden.new_empty(size, dtype=dtype) for size in sizes)


def _check_lists(op: str, weight: Tensor, ids: Tensor, offsets: Tensor) -> None:
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (0, -1)
    if ends != (0, ids.shape[0]) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"{op}: candidate_offsets: expected non-decreasing offsets from 0 to "
            f"N = {ids.shape[0]}, got {ends[0]} … {ends[1]}"
        )
    check.in_range(op, "candidate_ids", ids, weight.shape[0])


def _validate_backward(*args: Any) -> None:
    a = CANDIDATE_LOGPROB_BACKWARD.bind(args)
    name = "candidate_logprob_backward"
    _check_lists(name, a.weight, a.candidate_ids, a.candidate_offsets)


def _validate(*args: Any) -> None:
    a = CANDIDATE_LOGPROB.bind(args)
    op = "linear_logprob"  # which is what its caller knows
    head.check_rows(op, a.weight.shape[0], a.temperature)
    _check_lists(op, a.weight, a.candidate_ids, a.candidate_offsets)
    rows = Segments(a.candidate_offsets, a.candidate_ids.shape[0])
    chosen = (a.candidate_ids == rows.spread(a.target)).cumsum(0)
    chosen = torch.cat([chosen.new_zeros(1), chosen])[rows.offsets].diff()
    missing = (chosen == 0) & head.counted(a.target, a.ignore_index)
    if missing.any():
        at = int(missing.nonzero()[0])
        count = int(rows.counts[at])
        got = f"{count} others" if count else "no candidate"
        raise ValueError(
            f"{op}: candidate_ids: expected target[{at}] = {int(a.target[at])} among those of row "
            f"{at}, got {got}"
        )


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    logprob, entropy, lse, logits = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse, logits)
    tensors = {
        "hidden": inputs.hidden, "weight": inputs.weight, "target": inputs.target,
        "candidate_ids": inputs.candidate_ids, "candidate_offsets": inputs.candidate_offsets,
        "logprob": logprob, "lse": lse, "entropy": entropy, "logits": logits,
        "temperature": inputs.temperature,
    }  # fmt: skip
    head.save(
        ctx, tensors, logit_scale=inputs.logit_scale, softcap=inputs.softcap,
        ignore_index=inputs.ignore_index,
    )  # fmt: skip


def _backward(
    ctx: Any, dlogprob: Tensor | None, dentropy: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    if dlogprob is None and dentropy is None:
        return CANDIDATE_LOGPROB.gradients()
    upstream = head.both(dlogprob, dentropy)
    return head.gradients(ctx, CANDIDATE_LOGPROB, CANDIDATE_LOGPROB_BACKWARD, **upstream)


def _backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = CANDIDATE_LOGPROB_BACKWARD.bind(args)
    return head.empty_gradients(a.hidden, a.weight, a.need_hidden, a.need_weight, a.need_bias)


def _backward_reference(
    dlogprob: Tensor,
    dentropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    candidate_ids: Tensor,
    candidate_offsets: Tensor,
    logprob: Tensor,
    lse: Tensor,
    entropy: Tensor,
    logits: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = Segments(candidate_offsets, candidate_ids.shape[0])
    of_candidate = None if temperature is None else rows.spread(temperature)
    z = head.scale(logits[:, None], of_candidate, logit_scale, softcap)[:, 0]
    g, logp = rows.spread(dlogprob), z - rows.spread(lse)
    p = logp.exp()
    is_target = candidate_ids == rows.spread(target)
    dlogits = torch.where(is_target, -g * logp.expm1(), -g * p)
    if dentropy.numel():
        dlogits = dlogits - rows.spread(dentropy) * p * (
            logp.where(p > 0, 0) + rows.spread(entropy)
        )
    dlogits = head.scale_backward(dlogits[:, None], z[:, None], of_candidate, logit_scale, softcap)[
        :, 0
    ]
    wanted = head.with_gradient(dlogprob, dentropy, target, ignore_index)
    dlogits = dlogits.where(rows.spread(wanted), 0)

    dhidden, dweight, dbias = head.empty_gradients(
        hidden, weight, need_hidden, need_weight, need_bias
    )
    if need_hidden:
        dhidden = rows.weighted_rows(weight, candidate_ids, dlogits).to(hidden.dtype)
        dhidden = dhidden.where(wanted[:, None], 0)  # 0·NaN of a row that does not count is 0
    if need_weight or need_bias:
        # The candidates by id, those of one id in the order of the rows.
        ids, order = candidate_ids.long().sort(stable=True)
        every = torch.arange(weight.shape[0] + 1, device=ids.device)
        columns = Segments(torch.searchsorted(ids, every), ids.shape[0])
        if need_weight:
            row = rows.spread(torch.arange(hidden.shape[0], device=ids.device))
            counted = hidden.where(wanted[:, None], 0)
            dweight = columns.weighted_rows(counted, row[order], dlogits[order]).to(weight.dtype)
        if need_bias:
            dbias = columns.reduce(dlogits[order], "sum").to(weight.dtype)
    return dhidden, dweight, dbias


def _case(
    name: str,
    rows: int,
    width: int,
    columns: int,
    most: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    options: tuple[float | None, float, float | None] = (None, 1.0, None),
    entropy: bool = False,
    ignored: bool = False,
    bench: bool = False,
) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + width + columns)
        hidden = torch.randn(rows, width, generator=rng).to(device, dtype)
        weight = (torch.randn(columns, width, generator=rng) / width**0.5).to(device, dtype)
        order = torch.rand(rows, columns, generator=rng).argsort(-1)[:, :most]
        counts = torch.randint(1, order.shape[1] + 1, (rows,), generator=rng)
        target = order[:, 0].clone(memory_format=torch.contiguous_format)
        if ignored:  # some of them without any candidate
            target[::3] = -100
            counts[::6] = 0
        ids = order[torch.arange(order.shape[1]) < counts[:, None]]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        offset = torch.randn(columns, generator=rng).to(device, dtype) if bias else None
        base, logit_scale, softcap = options
        temperature = None
        if base is not None:
            temperature = base + torch.rand(rows, generator=rng).to(device)
        return (
            hidden, weight, target.to(device), ids.to(device), offsets.to(device), offset,
            temperature, logit_scale, softcap, entropy, -100 if ignored else head.NO_IGNORE,
        )  # fmt: skip

    pairs = rows * most / 2
    return Case(
        name,
        make,
        flops=2 * pairs * width,
        bytes=dtype.itemsize * width * (rows + pairs) + 12 * pairs,
        bench=bench,
    )


CAPPED = (0.7, 1.5, 3.0)
CASES = (
    _case("fp32", 33, 64, 250, 20),
    _case("bf16", 60, 96, 1000, 50, torch.bfloat16),
    _case("odd sizes", 7, 33, 131, 131, torch.bfloat16, entropy=True),
    _case("one row", 1, 16, 70, 5),
    _case("one candidate", 5, 16, 70, 1, entropy=True),
    _case("no rows", 0, 16, 70, 5),
    _case("all options", 50, 48, 301, 40, bias=True, options=CAPPED, entropy=True),
    _case(
        "all options bf16", 50, 47, 301, 40, torch.bfloat16, bias=True, options=CAPPED, entropy=True
    ),
    _case("ignored rows", 50, 40, 333, 30, entropy=True, ignored=True),
    _case("top 50", 1024, 576, 49152, 100, torch.bfloat16, bench=True),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        inputs = case.make(device)
        a = CANDIDATE_LOGPROB.bind(inputs)
        logprob, entropies, lse, logits = _reference(*inputs)
        rng = torch.Generator().manual_seed(1)
        dlogprob = torch.randn(lse.shape, generator=rng).to(lse)
        dentropy = torch.randn(entropies.shape, generator=rng).to(lse)
        dlogprob[1::4] = 0  # rows that are skipped
        dentropy[1::4] = 0
        return (
            dlogprob, dentropy, a.hidden, a.weight, a.target, a.candidate_ids,
            a.candidate_offsets, logprob, lse, entropies, logits, a.temperature, a.logit_scale,
            a.softcap, a.ignore_index, True, True, a.bias is not None,
        )  # fmt: skip

    return Case(case.name, make, flops=2 * case.flops, bytes=2 * case.bytes, bench=case.bench)


CANDIDATE_LOGPROB = Op(
    "candidate_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor candidate_ids, "
    "Tensor candidate_offsets, Tensor? bias, Tensor? temperature, float logit_scale, "
    "float? softcap, bool want_entropy, int ignore_index) "
    "-> (Tensor logprob, Tensor entropy, Tensor lse, Tensor logits)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
)
CANDIDATE_LOGPROB_BACKWARD = Op(
    "candidate_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor hidden, Tensor weight, "
    "Tensor target, Tensor candidate_ids, Tensor candidate_offsets, Tensor logprob, Tensor lse, "
    "Tensor entropy, Tensor logits, Tensor? temperature, float logit_scale, float? softcap, "
    "int ignore_index, bool need_hidden, bool need_weight, bool need_bias) "
    "-> (Tensor dhidden, Tensor dweight, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    validate=_validate_backward,
    cases=tuple(_backward_case(case) for case in CASES),
)
