"""One token a row, drawn by one uniform number, and its log-probability.

The same token comes out on every backend, for the draw is made of whole numbers, whose sums do not
depend on their order. A row is cut into blocks of 1024 logits. A logit of a block weighs
2^40·e^((logit − the block's largest) / temperature), rounded to a whole number, and the sums of the
blocks are brought to one scale, that of the row's largest logit. The uniform number times their
total, rounded down, lies in the share of one block, and so of one token. What is rounded before
that is a subtraction, products and sums in float32, each by itself, and conversions: the
exponential is this file's own polynomial. Blocks have scales of their own so that one read of the
logits is enough.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.head import head

BLOCK = 1024
LOG2E = 1.4426950408889634
BITS = 40  # of the weight 1
MOST_OF_BLOCK = BLOCK << BITS  # a sum above it holds the weight of a NaN
# 2^f for |f| ≤ 1/2 to 2·10⁻⁷, exactly 1 at 0; from the highest power to the constant, in float32.
COEFFICIENTS = tuple(
    float.fromhex(f"{c}p0") * 2.0**-power
    for c, power in (
        ("0x1.5bba14", 10), ("0x1.3cea88", 7), ("0x1.c6b752", 5), ("0x1.ebf9bc", 3),
        ("0x1.62e42a", 1), ("0x1.0", 0),
    )
)  # fmt: skip
MOST_RATE = torch.finfo(torch.float32).max  # 0 times it is 0: so the first stays the first
ROUNDS = 1.5 * 2.0**23  # a float32 plus this is rounded to a whole number
LOWEST = -126.0  # 2 to this power is normal, and weighs nothing
NOT_A_NUMBER = 11.0  # 2 to this power outweighs a block


class Sampled(NamedTuple):
    """What was drawn, and how probable it was."""

    token: Tensor
    """[B] int64."""
    logprob: Tensor
    """[B] float32, in nats, under the distribution that the token was drawn from."""


def sample_logprob(
    logits: Tensor, uniform: Tensor, *, temperature: float | Tensor = 1.0
) -> Sampled:
    """Tokens drawn from softmax(logits/temperature) by inverse transform, with log-probabilities.

    Every backend draws the same token of the same logits and number. A token that is no less than a
    thousandth as probable as the first comes with its probability to 10⁻⁶ of that. One read of the
    logits, no copy of them in float32, no wait for the device. There is no gradient.

    >>> token, logprob = sample_logprob(logits, torch.rand(B, dtype=torch.float64))

    Args:
        logits: [B, V], float32, bfloat16 or float16, with any stride between rows; −inf is never
            drawn.
        uniform: [B], float64, in [0, 1): float32 has too few numbers for a large vocabulary.
        temperature: divides the logits, finite: a number, or one a row, [B], float32, whose values
            are checked on a CPU and in ``checked()``. 0 takes the largest logit, the first of equal
            ones, and gives its log-probability at 1.

    Returns:
        ``Sampled(token [B], logprob [B])``. A row with a NaN or +inf, or of −inf alone, has the
        log-probability NaN, and the token 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(logits, uniform, temperature)
    rows = head.row_temperature(temperature, logits)
    return Sampled(*SAMPLE_LOGPROB(logits, uniform.detach().view(torch.int64), rows))


@remembered
def _check(logits: Tensor, uniform: Tensor, temperature: float | Tensor) -> None:
    name = "sample_logprob"
    shapes = check.Shapes(name)
    shapes("logits", logits, "B V", (torch.float32, torch.bfloat16, torch.float16))
    shapes("uniform", uniform, "B", (torch.float64,))
    head.check_rows(name, shapes.sizes["V"], None)
    check_temperature(shapes, temperature)


def check_temperature(shapes: check.Shapes, temperature: float | Tensor) -> None:
    """A number from 0 on, or one a row."""
    if isinstance(temperature, Tensor):
        shapes("temperature", temperature, "B", (torch.float32,))
    elif check.number(shapes.op, "temperature", temperature) < 0:
        raise ValueError(
            f"{shapes.op}: temperature: expected a number from 0 on, got {temperature}"
        )


def reference(logits: Tensor, uniform: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
    """``uniform`` [B] int64: the bits of float64, which kernels are not given as numbers."""
    if temperature is None:
        temperature = logits.new_ones(logits.shape[0], dtype=head.accumulate_dtype(logits.dtype))
    greedy = temperature == 0
    temperature = temperature.where(~greedy, 1)
    token = _draw(logits.float(), uniform.view(torch.float64), temperature.float(), greedy)
    wide = logits.to(head.accumulate_dtype(logits.dtype))
    centred = wide - wide.amax(1, keepdim=True)  # before a small temperature makes all infinite
    logprob = (centred / temperature[:, None]).log_softmax(-1)
    return token, logprob.gather(1, token[:, None])[:, 0]


def _draw(logits: Tensor, uniform: Tensor, temperature: Tensor, greedy: Tensor) -> Tensor:
    rate = (torch.full_like(temperature, LOG2E) / temperature).clamp(max=MOST_RATE)
    padding = -logits.shape[1] % BLOCK
    blocks = F.pad(logits, (0, padding), value=-torch.inf).unflatten(1, (-1, BLOCK))
    block_max = blocks.amax(2)
    centred = blocks - block_max.where(block_max != -torch.inf, 0)[..., None]
    weights = _power(centred * rate[:, None, None]).round().long()
    sums = weights.sum(2)

    max_logit = block_max.amax(1)
    scales = _power((block_max - max_logit[:, None]) * rate[:, None]).double() * 2.0**-BITS
    shares = (sums * scales).long()
    ends = shares.cumsum(1)
    total = ends[:, -1]
    target = torch.minimum((uniform * total).long(), total - 1)
    block = _index_within(ends, target)[:, None]
    within = target - (ends - shares).gather(1, block)[:, 0]
    within = (within / scales.gather(1, block)[:, 0]).long()
    within = torch.minimum(within, sums.gather(1, block)[:, 0] - 1)
    chosen = weights.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0]
    token = BLOCK * block[:, 0] + _index_within(chosen.cumsum(1), within)

    token = token.where(~greedy, logits.argmax(1))
    regular = (max_logit > -torch.inf) & (sums <= MOST_OF_BLOCK).all(1)
    return token.where(regular, 0)


def _power(z: Tensor) -> Tensor:
    """2^(BITS + z) in float32 for z ≤ 0, and what outweighs all others for NaN."""
    z = z.clamp(min=LOWEST).nan_to_num(nan=NOT_A_NUMBER)
    whole = (z + ROUNDS) - ROUNDS
    f = z - whole
    first, *others = (c * 2.0**BITS for c in COEFFICIENTS)
    p = torch.full_like(f, first)
    for c in others:
        p = p * f + c
    return (p.view(torch.int32) + (whole.int() << 23)).view(torch.float32)


def _index_within(ends: Tensor, target: Tensor) -> Tensor:
    """[B]: the first index of each row of ``ends`` [B, N], which do not fall, that is above it."""
    return (ends <= target[:, None]).sum(1).clamp(max=ends.shape[1] - 1)


def _fake(logits: Tensor, uniform: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=head.accumulate_dtype(logits.dtype)),
    )


def validate(op: str, columns: int, uniform: Tensor, temperature: Tensor | None) -> None:
    """The values of what is drawn by."""
    head.check_rows(op, columns, None)
    check.from_zero(op, "uniform", uniform.view(torch.float64), 1)
    if temperature is not None:
        check.from_zero(op, "temperature", temperature, torch.inf)


def _case(
    name: str,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    temperatures: tuple[float, ...] = (),
    removed: bool = False,
    bench: bool | str = False,
) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + columns)
        logits = 3 * torch.randn(rows, columns, generator=rng)
        uniform = torch.rand(rows, generator=rng, dtype=torch.float64)
        if removed:
            logits[torch.rand(rows, columns, generator=rng) < 0.9] = -torch.inf
            logits[:, columns // 2] = 1.0
            logits[0] = -torch.inf
        temperature = None
        if temperatures:
            temperature = torch.tensor(temperatures).repeat(rows)[:rows].to(device)
        return logits.to(device, dtype), uniform.view(torch.int64).to(device), temperature

    size = rows * columns
    return Case(name, make, flops=20.0 * size, bytes=float(dtype.itemsize * size), bench=bench)


MIXED = (1.0, 0.0, 0.6, 1.7)
CASES = (
    _case("fp32", 33, 250),
    _case("bf16", 40, 1000, torch.bfloat16, temperatures=(0.7,)),
    _case("fp16", 10, 300, torch.float16, temperatures=MIXED),
    _case("several blocks", 24, 4500, temperatures=MIXED),
    _case("several blocks bf16", 9, 3001, torch.bfloat16),
    _case("greedy bf16", 20, 2048, torch.bfloat16, temperatures=(0.0,)),
    _case("removed tokens", 20, 2100, torch.bfloat16, temperatures=MIXED, removed=True),
    _case("one row", 1, 1025),
    _case("one column", 5, 1, temperatures=MIXED),
    _case("no rows", 0, 70),
    _case("few tokens", 256, 512, torch.bfloat16, bench="cpu"),
    _case("vocabulary", 256, 49152, torch.bfloat16, bench="cpu"),
    _case("large vocabulary", 64, 151936, torch.bfloat16, temperatures=(0.7,), bench="cpu"),
    _case("large vocabulary, one row", 1, 151936, torch.bfloat16, bench=True),
    _case("large vocabulary, batch", 256, 151936, torch.bfloat16, bench="cuda"),
)

SAMPLE_LOGPROB = Op(
    "sample_logprob(Tensor logits, Tensor uniform, Tensor? temperature) "
    "-> (Tensor token, Tensor logprob)",
    reference=reference,
    fake=_fake,
    validate=lambda logits, *drawn: validate("sample_logprob", logits.shape[1], *drawn),
    cases=CASES,
    triton="r1kernels.head.triton.sample_logprob",
)
