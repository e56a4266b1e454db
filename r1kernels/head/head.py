"""What the head ops share: the options between the matrix product and the probabilities.

The order is fixed: bias → logit_scale → softcap → temperature (TRL, verl and vLLM agree on it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Op
from r1kernels.core.quotient import quotient

# No target can equal it, so no row is ignored.
NO_IGNORE = -(2**62)


class LogProb(NamedTuple):
    """Log-probabilities of the targets, and the entropies when they were asked for."""

    logprob: Tensor
    """[T] float32 (float64 for float64 inputs), in nats."""
    entropy: Tensor | None
    """[T], the same, of each row's whole distribution; None where it was not asked for."""


def check_options(op: str, logit_scale: float, softcap: float | None, of: str = "") -> None:
    """``of`` is what the names of these arguments begin with."""
    if check.number(op, f"{of}logit_scale", logit_scale) == 0:
        raise ValueError(f"{op}: {of}logit_scale: expected a number other than 0, got 0")
    if softcap is not None:
        check.positive(op, f"{of}softcap", check.number(op, f"{of}softcap", softcap))


def check_temperature(shapes: check.Shapes, temperature: float | Tensor, like: Tensor) -> None:
    """A number above 0, or one a row, whose values the ops look at; ``shapes`` knows V and T."""
    check_rows(shapes.op, shapes.sizes["V"], None)
    if isinstance(temperature, Tensor):
        shapes("temperature", temperature, "T", (accumulate_dtype(like.dtype),))
    else:
        positive = check.positive(shapes.op, "temperature", temperature)
        check.number(shapes.op, "temperature", positive)


def row_temperature(temperature: float | Tensor, like: Tensor) -> Tensor | None:
    """One temperature a row, [T], as the ops take it; None for 1."""
    if isinstance(temperature, Tensor):
        return temperature.detach()
    if temperature == 1:
        return None
    return like.new_full((like.shape[0],), temperature, dtype=accumulate_dtype(like.dtype))


def check_rows(op: str, columns: int, temperature: Tensor | None) -> None:
    """What a distribution needs: something to choose from, and a temperature of its rows."""
    if columns == 0:
        raise ValueError(f"{op}: expected V ≥ 1 tokens to choose from, got 0")
    if temperature is not None:
        check.above_zero(op, "temperature", temperature)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[T, V] as they leave the matrix product, in the dtype that is accumulated in."""
    z = hidden @ weight.T
    if bias is not None:
        z = z + bias
    return z.to(accumulate_dtype(hidden.dtype))


def scale(
    z: Tensor, temperature: Tensor | None, logit_scale: float, softcap: float | None
) -> Tensor:
    """Logits [T, V] as they leave the matrix product → logits of the distribution."""
    z = z * logit_scale
    if softcap is not None:
        z = torch.tanh(quotient(z, softcap)) * softcap
    return z if temperature is None else z / temperature[:, None]


def scale_backward(
    dlogits: Tensor,
    z: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    """Gradient of ``scale``, from its *result* z; of nothing it is nothing, whatever z is."""
    nothing = dlogits == 0
    if temperature is not None:
        dlogits, z = dlogits / temperature[:, None], z * temperature[:, None]
    if softcap is not None:
        dlogits = dlogits * (1 - quotient(z, softcap) ** 2)
    return (dlogits * logit_scale).masked_fill(nothing, 0)


def statistics(
    z: Tensor, target: Tensor, ignore_index: int, want_entropy: bool, sharded: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits [T, V] → (logprob [T], entropy [T] or [0], log-sum-exp [T]).

    A NaN or +∞ among the logits of a row makes all of its results NaN, and so does −∞ everywhere.

    ``sharded``: a target outside [0, V) is in another shard of the vocabulary; its logit counts
    as 0 here.
    """
    valid = counted(target, ignore_index)
    in_bounds = _in_shard(target, z.shape[-1]) if sharded else valid
    lse = z.logsumexp(-1)
    lse = lse.masked_fill(lse == torch.inf, torch.nan)
    target_logit = z.gather(-1, target.long().where(valid & in_bounds, 0)[:, None])[:, 0]
    logprob = target_logit.where(in_bounds, 0) - lse
    entropy = z.new_empty(0)
    if want_entropy:
        p = (z - lse[:, None]).exp()
        entropy = lse - (p * z.where(p > 0, 0)).sum(-1)
        entropy = entropy.where(valid, 0)
    return logprob.where(valid, 0), entropy, lse.where(valid, 0)


def statistics_backward(
    dlogprob: Tensor,
    dentropy: Tensor,
    z: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    ignore_index: int,
    sharded: bool = False,
) -> Tensor:
    """Gradient of ``statistics``: dlogits = g·(1_y − p) − e·p·(log p + H).

    Exactly zero for rows without an upstream gradient, whatever their logits are.
    """
    valid = counted(target, ignore_index)
    in_bounds = _in_shard(target, z.shape[-1]) if sharded else valid
    wanted = with_gradient(dlogprob, dentropy, target, ignore_index)
    logp = z - lse[:, None]
    p = logp.exp()
    dlogits = -dlogprob[:, None] * p
    of_target = dlogprob.where(in_bounds, 0)
    dlogits.scatter_add_(-1, target.long().where(valid & in_bounds, 0)[:, None], of_target[:, None])
    if dentropy.numel():
        dlogits -= dentropy[:, None] * p * (logp.where(p > 0, 0) + entropy[:, None])
    return dlogits.where(wanted[:, None], 0)


def with_gradient(dlogprob: Tensor, dentropy: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """[T] bool: rows that count and have an upstream gradient; all others contribute nothing."""
    wanted = dlogprob != 0
    if dentropy.numel():
        wanted = wanted | (dentropy != 0)
    return wanted & counted(target, ignore_index)


def counted(target: Tensor, ignore_index: int) -> Tensor:
    """[T] bool: the rows whose target is not ``ignore_index``.

    In int64: a constant that does not fit narrower integers would be compared by its low bits, and
    those of ``NO_IGNORE`` are the token 0.
    """
    return target.long() != ignore_index


def _in_shard(target: Tensor, columns: int) -> Tensor:
    return (target >= 0) & (target < columns)


def empty_gradients(
    hidden: Tensor, weight: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of hidden, weight and bias, to be filled; without rows where none is needed."""
    (rows, width), columns = hidden.shape, weight.shape[0]
    return (
        hidden.new_empty((rows if need_hidden else 0, width)),
        weight.new_empty((columns if need_weight else 0, width)),
        weight.new_empty(columns if need_bias else 0),
    )


def save(ctx: Any, tensors: dict[str, Tensor | None], **options: Any) -> None:
    """For ``gradients``: arguments of the op that makes them, by name."""
    ctx.names, ctx.options = tuple(tensors), options
    ctx.save_for_backward(*tensors.values())


def both(dlogprob: Tensor | None, dentropy: Tensor | None) -> dict[str, Tensor]:
    """Upstream gradients of log-probabilities and entropies, one of which there is."""
    if dlogprob is None:
        assert dentropy is not None
        dlogprob = torch.zeros_like(dentropy)
    if dentropy is None:
        dentropy = dlogprob.new_empty(0)
    return {"dlogprob": dlogprob, "dentropy": dentropy}


def gradients(ctx: Any, op: Op, maker: Op, **upstream: Tensor) -> tuple[Any, ...]:
    """What the backward of ``op`` returns: the gradients of hidden, weight and bias asked for.

    The op ``maker`` makes them, from ``upstream`` and what ``save`` was given.
    """
    # Asked for once: under checkpointing each is handed out once.
    saved = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    needed = op.needed(ctx)
    dhidden, dweight, dbias = maker.call(
        **upstream, **saved, **ctx.options,
        need_hidden=needed.hidden, need_weight=needed.weight, need_bias=needed.bias,
    )  # fmt: skip
    return op.gradients(
        hidden=dhidden if needed.hidden else None,
        weight=dweight if needed.weight else None,
        bias=dbias if needed.bias else None,
    )
