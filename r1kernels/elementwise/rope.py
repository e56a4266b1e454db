"""Rotary position embeddings of queries and keys, in one call and in the models' roundings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate pairs of elements of each query and key by the angles of its position.

    Su et al., RoFormer, arXiv 2104.09864. The pair (i, i + Dr/2), or (2i, 2i + 1) if
    ``interleaved``, becomes (a·cos − b·sin, b·cos + a·sin); elements from Dr on stay as they are.
    Each product is rounded to the dtype of the tables and then their sum, which is at last rounded
    to the dtype of q, so the result is bit for bit that of transformers' ``apply_rotary_pos_emb``;
    the gradient is the rotation back, rounded in the same way, and keeps only cos and sin.

    Args:
        q: [B, Hq, S, D], float32, bfloat16, float16 or float64, of any strides: views such as
            ``proj(x).view(B, S, Hq, D).transpose(1, 2)`` are read as they are.
        k: [B, Hk, S, D], dtype of q.
        cos: [B, S, Dr] or [1, S, Dr], dtype of q or float32 (with which models in 16 bits rotate
            in float32); Dr is even and at most D. Element i takes [..., i]: each angle stands
            there twice, as the elements of its pair do. Constants: no gradient flows to them.
        sin: the same of the sines, dtype of cos.
        interleaved: pairs stand side by side (Cohere, GLM, ERNIE).

    Returns:
        (q, k) rotated: dtypes, shapes and orders in memory of what was given, without its gaps.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(q, k, cos, sin, interleaved)
    return ROPE(q, k, cos, sin, interleaved, False)


@remembered
def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    shapes = check.Shapes("rope")
    shapes("q", q, "B Hq S D", check.FLOATS)
    shapes("k", k, "B Hk S D", (q.dtype,))
    check.flag("rope", "interleaved", interleaved)
    shared = isinstance(cos, Tensor) and cos.dim() == 3 and cos.shape[0] == 1
    table = "1 S Dr" if shared else "B S Dr"
    wide = () if q.dtype in (torch.float32, torch.float64) else (torch.float32,)
    shapes("cos", cos, table, (q.dtype, *wide))
    if cos.shape[2] % 2 or cos.shape[2] > q.shape[3]:
        raise ValueError(
            f"rope: cos: expected an even Dr of at most D = {q.shape[3]} in shape [B, S, Dr], got "
            f"{list(cos.shape)} (D is that of q)"
        )
    shapes("sin", sin, table, (cos.dtype,))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    width = cos.shape[-1]
    half = width // 2
    first, second = (slice(0, width, 2), slice(1, width, 2)) if interleaved else (
        slice(0, half), slice(half, width)
    )  # fmt: skip
    a, b, cos_a, cos_b, sin_a, sin_b = (t[..., at] for t in (x, cos, sin) for at in (first, second))
    out = torch.empty_like(x)
    out[..., width:] = x[..., width:]
    if inverse:
        out[..., first] = a * cos_a + b * sin_b
        out[..., second] = b * cos_b - a * sin_a
    else:
        out[..., first] = a * cos_a - b * sin_a
        out[..., second] = b * cos_b + a * sin_b
    return out


def reference(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (
        _rotated(q, cos, sin, interleaved, inverse),
        _rotated(k, cos, sin, interleaved, inverse),
    )


def _fake(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.interleaved, ctx.inverse = inputs.interleaved, inputs.inverse
    ctx.save_for_backward(inputs.cos, inputs.sin)


def _backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
    cos, sin = ctx.saved_tensors
    dq, dk = ROPE(dq, dk, cos, sin, ctx.interleaved, not ctx.inverse)
    return ROPE.gradients(q=dq, k=dk)


def _case(
    name: str, batch: int, heads: tuple[int, int], length: int, width: int, rotary: int = 0,
    dtype: torch.dtype = torch.bfloat16, *, of_tables: torch.dtype | None = None,
    interleaved: bool = False, inverse: bool = False, shared: bool = True,
    transposed: bool = True, positions_last: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    rotary = rotary or width

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(batch + length + width)

        def states(count: int) -> Tensor:
            if positions_last:  # as the gradient of keys that were transposed for a product
                made = torch.randn(batch, count, width, length, generator=rng)
                return made.to(device, dtype).transpose(2, 3)
            if transposed:  # what a projection gives
                made = torch.randn(batch, length, count, width, generator=rng)
                return made.to(device, dtype).transpose(1, 2)
            return torch.randn(batch, count, length, width, generator=rng).to(device, dtype)

        tables = 1 if shared else batch
        start = torch.randint(1000, (tables, 1, 1), generator=rng)
        angle = (start + torch.arange(length)[:, None]) * 10000 ** (
            -torch.arange(rotary // 2) / max(rotary // 2, 1)
        )
        angle = angle.repeat_interleave(2, -1) if interleaved else angle.repeat(1, 1, 2)
        cos, sin = (table.to(device, of_tables or dtype) for table in (angle.cos(), angle.sin()))
        return states(heads[0]), states(heads[1]), cos, sin, interleaved, inverse

    size = batch * sum(heads) * length * width
    return Case(name, make, flops=3.0 * size, bytes=2.0 * dtype.itemsize * size, tier="bitwise",
                bench=bench)  # fmt: skip


ROPE = Op(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool inverse) "
    "-> (Tensor q_out, Tensor k_out)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=(
        _case("bf16", 2, (4, 2), 9, 64, shared=False),
        _case("fp32", 2, (3, 1), 7, 64, dtype=torch.float32),
        _case("back", 2, (4, 2), 9, 64, inverse=True),
        _case("back, fp32", 1, (3, 1), 7, 32, dtype=torch.float32, inverse=True),
        _case("interleaved", 2, (4, 2), 9, 64, interleaved=True),
        _case("interleaved, part, back", 2, (4, 2), 9, 72, 48, interleaved=True, inverse=True),
        _case("part", 2, (4, 2), 5, 80, 20, shared=False),
        _case("odd widths, fp32", 1, (2, 2), 5, 37, 26, torch.float32),
        _case("interleaved, odd widths", 1, (2, 2), 5, 37, 26, interleaved=True),
        _case("contiguous heads", 2, (4, 2), 9, 64, transposed=False, shared=False),
        _case("positions last", 2, (4, 2), 9, 64, positions_last=True),
        _case("positions last, back, fp32", 2, (2, 2), 9, 32, dtype=torch.float32, inverse=True,
              positions_last=True),
        _case("fp16", 1, (2, 1), 5, 32, dtype=torch.float16),
        _case("tables in fp32", 2, (4, 2), 9, 64, of_tables=torch.float32, shared=False),
        _case("tables in fp32, part, back", 2, (4, 2), 9, 80, 36, of_tables=torch.float32,
              inverse=True),
        _case("tables in fp32, interleaved", 2, (4, 2), 9, 80, 36, of_tables=torch.float32,
              interleaved=True),
        _case("tables in fp32, interleaved, back", 2, (4, 2), 9, 64, of_tables=torch.float32,
              interleaved=True, inverse=True),
        _case("tables in fp32, fp16", 1, (2, 1), 5, 32, dtype=torch.float16,
              of_tables=torch.float32),
        _case("one position", 3, (4, 1), 1, 64, shared=False),
        _case("no positions", 2, (4, 2), 0, 64),
        _case("S 2048, 32 and 8 heads of 64", 2, (32, 8), 2048, 64, bench="cpu"),
        _case("S 2048, 32 and 8 heads of 64, fp32", 2, (32, 8), 2048, 64, dtype=torch.float32,
              bench="cpu"),
        _case("S 4096, 32 and 8 heads of 128", 4, (32, 8), 4096, 128, bench="cuda"),
        _case("S 4096, 32 and 8 heads of 128, back", 4, (32, 8), 4096, 128, inverse=True,
              bench="cuda"),
    ),
    triton="r1kernels.elementwise.triton.rope",
)  # fmt: skip
