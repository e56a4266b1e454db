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
    own = rows.reduce(z.where(candidate_ids == rows.spread(target), 0), "sum")
    entropy = z.new_empty(0)
    if want_entropy:
        p = (z - rows.spread(lse)).exp()
        entropy = lse - rows.reduce(p * z.where(p > 0, 0), "sum")
        entropy = entropy.where(valid, 0)
    return (own - lse).where(valid, 0), entropy, lse.where(valid, 0), logits


def _scaled(
    logits: Tensor,
    rows: Segments,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    of_candidate = None if temperature is None else rows.spread(temperature)
    return head.scale(logits[:, None], of_candidate, logit_scale, softcap)[:, 0]


def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, candidate_ids: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = hidden.shape[0], head.accumulate_dtype(hidden.dtype)
    sizes = rows, rows if rest[-2] else 0, rows, candidate_ids.shape[0]
    one, two, three, four = (hidden.new_empty(size, dtype=dtype) for size in sizes)
    return one, two, three, four


def _check_lists(op: str, weight: Tensor, ids: Tensor, offsets: Tensor) -> None:
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (0, -1)
    if ends != (0, ids.shape[0]) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"{op}: candidate_offsets: expected non-decreasing offsets from 0 to "
            f"N = {ids.shape[0]}, got {ends[0]} … {ends[1]}"
        )
    check.in_range(op, "candidate_ids", ids, weight.shape[0])


def _validate_backward(
    dlogprob: Tensor,
    dentropy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    candidate_ids: Tensor,
    candidate_offsets: Tensor,
    *rest: Any,
) -> None:
    _check_lists("candidate_logprob_backward", weight, candidate_ids, candidate_offsets)


def _validate(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    candidate_ids: Tensor,
    candidate_offsets: Tensor,
    *rest: Any,
) -> None:
    op = "linear_logprob"  # which is what its caller knows
    _, temperature, *_, ignore_index = rest
    head.check_rows(op, weight.shape[0], temperature)
    _check_lists(op, weight, candidate_ids, candidate_offsets)
    rows = Segments(candidate_offsets, candidate_ids.shape[0])
    chosen = (candidate_ids == rows.spread(target)).cumsum(0)
    chosen = torch.cat([chosen.new_zeros(1), chosen])[rows.offsets].diff()
    missing = (chosen == 0) & head.counted(target, ignore_index)
    if missing.any():
        at = int(missing.nonzero()[0])
        count = int(rows.counts[at])
        got = f"{count} others" if count else "no candidate"
        raise ValueError(
            f"{op}: candidate_ids: expected target[{at}] = {int(target[at])} among those of row "
            f"{at}, got {got}"
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, ids, offsets, _, temperature, *options, _, ignore_index = inputs
    logprob, entropy, lse, logits = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse, logits)
    ctx.options = (*options, ignore_index)
    ctx.save_for_backward(
        hidden, weight, target, ids, offsets, logprob, lse, entropy, logits, temperature
    )


def _backward(
    ctx: Any, dlogprob: Tensor | None, dentropy: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    gradients: list[Tensor | None] = [None] * 11
    if dlogprob is None and dentropy is None:
        return tuple(gradients)
    saved = ctx.saved_tensors  # asked for once: under checkpointing each is handed out once
    lse = saved[6]
    if dlogprob is None:
        dlogprob = torch.zeros_like(lse)
    if dentropy is None:
        dentropy = lse.new_empty(0)
    wanted = tuple(ctx.needs_input_grad[at] for at in (0, 1, 5))
    made = CANDIDATE_LOGPROB_BACKWARD(dlogprob, dentropy, *saved, *ctx.options, *wanted)
    for at, gradient, needed in zip((0, 1, 5), made, wanted, strict=True):
        gradients[at] = gradient if needed else None
    return tuple(gradients)


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
    own = candidate_ids == rows.spread(target)
    dz = torch.where(own, -g * logp.expm1(), -g * p)
    if dentropy.numel():
        dz = dz - rows.spread(dentropy) * p * (logp.where(p > 0, 0) + rows.spread(entropy))
    dz = head.scale_backward(dz[:, None], z[:, None], of_candidate, logit_scale, softcap)[:, 0]
    wanted = head.with_gradient(dlogprob, dentropy, target, ignore_index)
    dz = dz.where(rows.spread(wanted), 0)

    dhidden, dweight, dbias = head.empty_gradients(
        hidden, weight, need_hidden, need_weight, need_bias
    )
    if need_hidden:
        dhidden = rows.weighted_rows(weight, candidate_ids, dz).to(hidden.dtype)
        dhidden = dhidden.where(wanted[:, None], 0)  # 0·NaN of a row that does not count is 0
    if need_weight or need_bias:
        # The candidates by id, those of one id in the order of the rows.
        ids, order = candidate_ids.long().sort(stable=True)
        every = torch.arange(weight.shape[0] + 1, device=ids.device)
        columns = Segments(torch.searchsorted(ids, every), ids.shape[0])
        if need_weight:
            row = rows.spread(torch.arange(hidden.shape[0], device=ids.device))
            counted = hidden.where(wanted[:, None], 0)
            dweight = columns.weighted_rows(counted, row[order], dz[order]).to(weight.dtype)
        if need_bias:
            dbias = columns.reduce(dz[order], "sum").to(weight.dtype)
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
        base, *rest = options
        temperature = None
        if base is not None:
            temperature = base + torch.rand(rows, generator=rng).to(device)
        return (
            hidden, weight, target.to(device), ids.to(device), offsets.to(device), offset,
            temperature, *rest, entropy, -100 if ignored else head.NO_IGNORE,
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
        hidden, weight, target, ids, offsets, bias, temperature, *options, _, ignore_index = inputs
        logprob, entropies, lse, logits = _reference(*inputs)
        rng = torch.Generator().manual_seed(1)
        dlogprob = torch.randn(lse.shape, generator=rng).to(lse)
        dentropy = torch.randn(entropies.shape, generator=rng).to(lse)
        dlogprob[1::4] = 0  # rows that are skipped
        dentropy[1::4] = 0
        return (
            dlogprob, dentropy, hidden, weight, target, ids, offsets, logprob, lse, entropies,
            logits, temperature, *options, ignore_index, True, True, bias is not None,
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
    fake=head.backward_fake,
    validate=_validate_backward,
    cases=tuple(_backward_case(case) for case in CASES),
)
