"""sample_logprob of a linear head, whose logits are never written: for an engine on a CPU.

The logits are those of linear_logprob, in float32 whatever the dtype of the weight, so a token's
log-probability is the learner's but for the order of one sum. A backend makes them a block at a
time, keeps the block's largest logit and the sums of its weights, and makes the few again among
which the token lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.head import head
from r1kernels.head import sample_logprob as sampling
from r1kernels.head.sample_logprob import Sampled


def linear_sample_logprob(
    hidden: Tensor,
    weight: Tensor,
    uniform: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Sampled:
    """``sample_logprob`` of the logits of hidden states [B, H] under ``weight`` [V, H].

    Args:
        hidden, weight, bias, logit_scale, softcap: as ``linear_logprob`` takes them, but for
            float64; gradients do not flow.
        uniform, temperature: as ``sample_logprob`` takes them.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(hidden, weight, uniform, bias, temperature, logit_scale, softcap)
    rows = head.row_temperature(temperature, hidden)
    bits = uniform.detach().view(torch.int64)
    return Sampled(*LINEAR_SAMPLE_LOGPROB(hidden, weight, bits, bias, rows, logit_scale, softcap))


@remembered
def _check(
    hidden: Tensor,
    weight: Tensor,
    uniform: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
) -> None:
    name = "linear_sample_logprob"
    shapes = check.Shapes(name)
    shapes("hidden", hidden, "B H", (torch.float32, torch.bfloat16, torch.float16))
    shapes("weight", weight, "V H", (hidden.dtype,))
    shapes("uniform", uniform, "B", (torch.float64,))
    if bias is not None:
        shapes("bias", bias, "V", check.FLOATS)
    head.check_rows(name, shapes.sizes["V"], None)
    sampling.check_temperature(shapes, temperature)
    check.number(name, "logit_scale", logit_scale)
    if softcap is not None:
        check.positive(name, "softcap", softcap)


def _reference(
    hidden: Tensor,
    weight: Tensor,
    uniform: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)  # the tests' truth is in float64
    logits = hidden.to(wide) @ weight.to(wide).T
    logits = logits if bias is None else logits + bias.to(wide)
    logits = head.scale(logits, None, logit_scale, softcap)
    return sampling.reference(logits, uniform, temperature)


def _fake(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = hidden.shape[0]
    return (
        hidden.new_empty(rows, dtype=torch.int64),
        hidden.new_empty(rows, dtype=torch.float32),
    )


def _validate(
    _hidden: Tensor,
    weight: Tensor,
    uniform: Tensor,
    _bias: Tensor | None,
    temperature: Tensor | None,
    *_: Any,
) -> None:
    sampling.validate("linear_sample_logprob", weight.shape[0], uniform, temperature)


def _case(
    name: str,
    rows: int,
    columns: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    temperatures: tuple[float, ...] = (),
    bias: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    bench: bool | str = False,
) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + columns)
        hidden = torch.randn(rows, width, generator=rng).to(device, dtype)
        weight = (3 * width**-0.5 * torch.randn(columns, width, generator=rng)).to(device, dtype)
        uniform = torch.rand(rows, generator=rng, dtype=torch.float64).view(torch.int64)
        offset = torch.randn(columns, generator=rng).to(device, dtype) if bias else None
        given = torch.tensor(temperatures).repeat(rows)[:rows].to(device) if temperatures else None
        return hidden, weight, uniform.to(device), offset, given, logit_scale, softcap

    flops = 2.0 * rows * columns * width
    moved = float(dtype.itemsize * columns * width)
    return Case(name, make, flops=flops, bytes=moved, bench=bench)


CASES = (
    _case("fp32", 33, 250, 24),
    _case("bf16", 40, 1000, 33, torch.bfloat16, temperatures=(0.7,)),
    _case("fp16", 10, 300, 16, torch.float16, temperatures=sampling.MIXED),
    _case("several blocks", 50, 4500, 20, temperatures=sampling.MIXED, bias=True),
    _case("several blocks bf16", 9, 3001, 64, torch.bfloat16, bias=True),
    _case("scaled and capped", 20, 2100, 40, logit_scale=0.5, softcap=4.0, temperatures=(0.8, 0)),
    _case("one row", 1, 1025, 8),
    _case("one column", 5, 1, 8, temperatures=sampling.MIXED),
    _case("no rows", 0, 70, 8),
    _case("large vocabulary, narrow", 32, 151665, 8, bench="cpu"),
    _case("large vocabulary", 32, 49152, 576, bench="cpu"),
    _case("large vocabulary bf16", 32, 49152, 576, torch.bfloat16, bench="cpu"),
)

LINEAR_SAMPLE_LOGPROB = Op(
    "linear_sample_logprob(Tensor hidden, Tensor weight, Tensor uniform, Tensor? bias, "
    "Tensor? temperature, float logit_scale, float? softcap) -> (Tensor token, Tensor logprob)",
    reference=_reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
)
