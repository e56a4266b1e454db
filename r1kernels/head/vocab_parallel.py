"""A linear head whose vocabulary lies in shards on the ranks of a process group.

Every rank runs ``linear_logprob`` on its own shard. Four numbers a row are exchanged in the forward
pass and the gradient of hidden in the backward pass; weight and bias stay where they are. Sums over
ranks are taken in the order of the ranks, so results do not depend on how a library of collectives
cuts its messages, every rank has the same bits, and a row does not depend on its batch.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import softplus

from r1kernels.core.once import inputs_of, once
from r1kernels.head import head
from r1kernels.head.linear_logprob_op import LINEAR_LOGPROB, LINEAR_LOGPROB_BACKWARD

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def vocab_parallel_logprob(
    name: str,
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
    *,
    group: ProcessGroup,
    start: int,
    size: int | None,
) -> tuple[Tensor, Tensor]:
    """``linear_logprob``'s arguments up to ignore_index → (logprob [T], entropy [T] or [0])."""
    columns = weight.shape[0] if size is None else min(max(size - start, 0), weight.shape[0])
    if columns < weight.shape[0]:  # a shard of nothing but padding leaves one column to be ignored
        weight = weight[: max(columns, 1)]
        bias = None if bias is None else bias[: max(columns, 1)]
    column = target.long() - start
    valid = head.counted(target, ignore_index)
    in_bounds = valid & (column >= 0) & (column < columns)
    column = column.where(in_bounds, -1).where(valid, head.NO_IGNORE)
    value, entropy, owners = _VocabParallel.apply(
        group, columns == 0, in_bounds, hidden, weight, bias, column, keep, temperature,
        logit_scale, softcap, want_entropy, entropy_grad, kept_rows, frozen_head,
    )  # fmt: skip
    if target.device.type == "cpu":
        _check_owners(name, target, owners, valid)
    # On a GPU, where asking would wait for the device, such a row says so itself.
    value = value.where((owners == 1) | ~valid, torch.nan)
    return value, entropy


def _check_owners(name: str, target: Tensor, owners: Tensor, valid: Tensor) -> None:
    wrong = valid & (owners != 1)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}: target[{at}]: expected an id in the shard of one rank of tp_group, "
            f"got {int(target[at])}, which {int(owners[at])} ranks have"
        )


class Shards(NamedTuple):
    """What all ranks know of each other's part of the distribution. log_mass: log of its mass."""

    lse: Tensor  # [T]
    log_mass: tuple[Tensor, ...]  # of [T]


def combine(lse: Tensor) -> Shards:
    """Log-sum-exps [ranks, T] → that of all, and log Σ_shard p of each, exact even near 0."""
    top = lse.amax(0)
    parts = (lse - top).exp().unbind()
    zero = torch.zeros_like(top)
    before = list(accumulate(parts[:-1], initial=zero))
    after = list(accumulate(parts[:0:-1], initial=zero))[::-1]
    others = zip(lse, before, after, strict=True)
    log_mass = tuple(-softplus((b + a).log() + (top - own), threshold=40.0) for own, b, a in others)
    return Shards(top + (before[-1] + parts[-1]).log(), log_mass)


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: ProcessGroup,
        empty: bool,
        in_bounds: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        keep: Tensor | None,
        temperature: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        want_entropy: bool,
        entropy_grad: bool,
        kept_rows: int,
        frozen_head: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.inputs = inputs_of((hidden, weight, bias))
        logprob, entropy, lse, kept, dhidden = LINEAR_LOGPROB(
            hidden, weight, target, bias, keep, temperature, logit_scale, softcap,
            want_entropy, entropy_grad, kept_rows, frozen_head, head.NO_IGNORE, True,
        )  # fmt: skip
        valid = target != head.NO_IGNORE
        if empty:
            lse = lse.new_full(lse.shape, -torch.inf).where(valid, 0)
        row = torch.stack(
            [lse, logprob, in_bounds.to(lse.dtype), *([entropy] if want_entropy else [])]
        )
        rows = _gather(row, group)
        shards = combine(rows[:, 0])
        owners = rows[:, 2].sum(0)
        value = torch.zeros_like(lse)
        entropy = torch.zeros_like(entropy)
        for (_, theirs, owned, *rest), log_mass in zip(rows, shards.log_mass, strict=True):
            value = value + (theirs + log_mass).where(owned != 0, 0)
            for their_entropy in rest:  # at most one
                mass = log_mass.exp()
                entropy = entropy + (mass * (their_entropy - log_mass)).where(mass > 0, 0)
        value = value.where(valid, 0)
        lse = shards.lse.where(valid, 0)
        if want_entropy:
            entropy = entropy.where(valid, 0)

        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(owners, *([] if entropy_grad else [entropy]))
        ctx.group, ctx.empty, ctx.dtype = group, empty, hidden.dtype
        ctx.options, ctx.frozen_head = (logit_scale, softcap, entropy_grad), frozen_head
        if frozen_head:
            in_shard = in_bounds if keep is None else in_bounds & keep
            slope = temperature, logit_scale, softcap
            log_mass = shards.log_mass[dist.get_rank(group)]
            dhidden = _frozen_gradient(
                dhidden, weight, target, in_shard, log_mass, value + lse, slope
            )
            ctx.save_for_backward(dhidden)
        else:
            ctx.save_for_backward(
                hidden, weight, target, bias, keep, value, lse, entropy, kept, temperature
            )
        return value, entropy, owners

    @staticmethod
    @once("linear_logprob")
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        dlogprob, dentropy, _ = grads
        gradients: list[Any] = [None] * 15
        if dlogprob is None and dentropy is None:
            return tuple(gradients)
        if ctx.frozen_head:
            (dhidden,) = ctx.saved_tensors
            assert dlogprob is not None  # the only output with a gradient
            partial = (dlogprob[:, None] * dhidden).to(ctx.dtype)
            gradients[3] = sum_over_ranks(partial, ctx.group)
            return tuple(gradients)
        saved = ctx.saved_tensors  # asked for once: under checkpointing each is handed out once
        lse = saved[6]
        if dlogprob is None or ctx.empty:
            dlogprob = torch.zeros_like(lse)
        if dentropy is None or ctx.empty:
            dentropy = lse.new_empty(0)
        logit_scale, softcap, entropy_grad = ctx.options
        needed = ctx.needs_input_grad[3:6]
        made = LINEAR_LOGPROB_BACKWARD(
            dlogprob, dentropy, *saved, logit_scale, softcap, entropy_grad,
            head.NO_IGNORE, True, *needed,
        )  # fmt: skip
        for position, (gradient, wanted) in enumerate(zip(made, needed, strict=True), start=3):
            gradients[position] = gradient if wanted else None
        if needed[0]:
            gradients[3] = sum_over_ranks(made[0], ctx.group)
        return tuple(gradients)


def _frozen_gradient(
    dhidden: Tensor,
    weight: Tensor,
    target: Tensor,
    in_shard: Tensor,
    log_mass: Tensor,
    target_logit: Tensor,
    options: tuple[Tensor | None, float, float | None],
) -> Tensor:
    """d logprob/d hidden [T, H] by this shard, from the one that takes the shard for the whole.

    With s the mass of the shard, α·(1_y·W_y − Σ p·W) becomes α·(1_y·W_y − s·Σ p·W).
    """
    row = (-log_mass.expm1()).where(in_shard, 0)  # 1 − s
    slope = head.scale_backward(row[:, None], target_logit[:, None], *options)
    rest = log_mass.exp()[:, None]
    dhidden = (dhidden * rest).where(rest > 0, 0)
    return dhidden + slope * weight[target.where(in_shard, 0)]


def _gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """[…] on each rank → [ranks, …] on all of them."""
    everyone = x.new_empty(dist.get_world_size(group), *x.shape)
    dist.all_gather(list(everyone), x, group=group)
    return everyone


def sum_over_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """Σ over ranks of x [T, H], in float32 and in their order, with an all-reduce's traffic."""
    ranks = dist.get_world_size(group)
    rows = -(-x.shape[0] // ranks)
    padded = x.new_zeros(ranks * rows, x.shape[1])
    padded[: x.shape[0]] = x
    theirs = torch.empty_like(padded)
    dist.all_to_all_single(theirs, padded, group=group)
    wide = head.accumulate_dtype(x.dtype)
    parts = (part.to(wide) for part in theirs.view(ranks, rows, -1))
    total = sum(parts, start=torch.zeros((), dtype=wide, device=x.device))
    return _gather(total.to(x.dtype), group).view(ranks * rows, -1)[: x.shape[0]]
