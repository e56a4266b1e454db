"""Rotary positions through ``rope``: which of its forms a function computes, found by asking it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.elementwise.rope import ROPE
from r1kernels.hf.elementwise.probing import agrees, normal

B, S, D = 2, 5, 16
# How the elements of a pair stand: half a head apart (Llama), side by side (Cohere), or side by
# side before and half a head apart after (DeepSeek-V3). And the columns of the tables: each element
# reads its own, or there is one for each pair (GPT-OSS), or these are the first half (GLM).
FORMS = (
    ("halves", "all"),
    ("halves", "one a pair"),
    ("pairs", "first half"),
    ("pairs", "all"),
    ("pairs to halves", "first half"),
)
# Whether it is computed in float32 whatever the dtypes are, and whether what is computed in a wider
# dtype than the queries' is cast back to that.
ROUNDINGS = ((False, False), (False, True), (True, True))


class Rotation(NamedTuple):
    """What ``function(q, k, cos, sin)`` computes.

    negated: it turns the other way round (nanochat). partial: tables may be narrower than heads, of
    which the rest stays.
    """

    function: Callable[..., Any]
    pairs: str
    columns: str
    in_float32: bool
    back: bool
    negated: bool
    partial: bool

    def __str__(self) -> str:
        said = [self.pairs, *["in float32"] * self.in_float32, *["turned back"] * self.negated]
        return ", ".join(said)

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """What ``function`` gives; where the op takes no such tensors, by the function itself."""
        same = q.dtype == k.dtype != torch.float64 and cos.dtype == sin.dtype != torch.float64
        usual = same and q.dim() == k.dim() == 4 and cos.dim() == 3 and cos.shape == sin.shape
        # Of any other width the function may broadcast a table, or raise.
        width = cos.shape[-1] * (2 if self.columns == "one a pair" else 1)
        usual = usual and (width == q.shape[3] == k.shape[3] or (self.partial and width % 2 == 0))
        if usual and cos.shape[1] == q.shape[2] == k.shape[2] and cos.shape[0] in (1, q.shape[0]):
            return self.rotated(q, k, cos, sin)
        return self.function(q, k, cos, sin)

    def rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        computed = torch.float32 if self.in_float32 else torch.promote_types(q.dtype, cos.dtype)
        if not self.back:
            q, k = q.to(computed), k.to(computed)
        if self.pairs == "pairs to halves":
            q, k = (x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q, k))
        cos, sin = self.table(cos).to(computed), self.table(sin).to(computed)
        return ROPE(q, k, cos, -sin if self.negated else sin, self.pairs == "pairs", False)

    def table(self, angles: Tensor) -> Tensor:
        """The table of ``rope``, where each element has a column of its own."""
        if self.columns == "all":
            return angles
        if self.columns == "first half":
            angles = angles[..., : angles.shape[-1] // 2]
        return angles.repeat_interleave(2, -1) if self.pairs == "pairs" else angles.repeat(1, 1, 2)


def rotation_of(function: Callable[..., Any]) -> Rotation | None:
    """How ``function`` rotates queries and keys; None if it does something else."""
    try:
        takes = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return None
    if len(takes) < 4 or any(p.default is p.empty for p in takes[4:] if p.kind < p.VAR_POSITIONAL):
        return None
    return next(_fitting(function), None)


def _fitting(function: Callable[..., Any]) -> Iterator[Rotation]:
    for negated, form, roundings in product((False, True), FORMS, ROUNDINGS):
        rotation = Rotation(function, *form, *roundings, negated, partial=False)
        if all(_agrees(rotation, *setting, 1.0) for setting in DTYPES):
            # With narrower tables the function need not run at all.
            narrower = _agrees(rotation, torch.float32, torch.float32, 0.5)
            if narrower is not False:
                yield rotation._replace(partial=bool(narrower))


DTYPES = (  # of heads and of tables
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
)


def _agrees(
    rotation: Rotation, dtype: torch.dtype, of_tables: torch.dtype, fraction: float
) -> bool | None:
    """Whether the rotation's function does what it says, its tables over that fraction of a head.

    None where it does not run.
    """
    rng = torch.Generator("cpu").manual_seed(0)
    q, k = (normal((B, heads, S, D), rng).to(dtype) for heads in (3, 1))
    # Tables of columns that all differ, so that it shows which are read.
    columns = int(D * fraction) // (2 if rotation.columns == "one a pair" else 1)
    cos, sin = (normal((B, S, columns), rng).to(of_tables) for _ in range(2))
    with torch.no_grad():
        try:
            expected = rotation.function(q, k, cos, sin)
        except Exception:  # of whatever kind: the code is somebody else's
            return None
        if not isinstance(expected, tuple) or len(expected) != 2:
            return False
        return all(map(agrees, rotation.rotated(q, k, cos, sin), expected))
