"""Rotary positions through ``rope``: which of its forms a function computes, found by asking it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.hf.probing import agrees, normal
from r1kernels.ops.rope import ROPE

B, S, D = 2, 5, 16
# How the elements of a pair stand: half a head apart (Llama), side by side (GLM), or side by side
# before and half a head apart after (DeepSeek-V3).
FORMS = ("halves", "pairs", "pairs to halves")


class Rotation(NamedTuple):
    """What ``function(q, k, cos, sin)`` computes.

    back: where the tables are of a wider dtype, the results are cast back to that of the queries.
    """

    function: Callable[..., Any]
    form: str
    back: bool

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """What ``function`` gives; where the op takes no such tensors, by the function itself."""
        same = q.dtype == k.dtype and cos.dtype == sin.dtype
        usual = same and q.dim() == k.dim() == 4 and cos.dim() == 3 and cos.shape == sin.shape
        if usual and cos.shape[1] == q.shape[2] == k.shape[2] and cos.shape[0] in (1, q.shape[0]):
            return self.rotated(q, k, cos, sin)
        return self.function(q, k, cos, sin)

    def rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        dtype, wide = q.dtype, torch.promote_types(q.dtype, cos.dtype)
        q, k, cos, sin = (tensor.to(wide) for tensor in (q, k, cos, sin))
        if self.form == "pairs to halves":
            q, k = (x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q, k))
            cos, sin = (table[..., : table.shape[-1] // 2].repeat(1, 1, 2) for table in (cos, sin))
        q, k = ROPE(q, k, cos, sin, self.form == "pairs", False)
        return (q.to(dtype), k.to(dtype)) if self.back else (q, k)


def rotation_of(function: Callable[..., Any]) -> Rotation | None:
    """How ``function`` rotates queries and keys; None if it does something else."""
    try:
        takes = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return None
    if len(takes) < 4 or any(p.default is p.empty for p in takes[4:] if p.kind < p.VAR_POSITIONAL):
        return None
    for form in FORMS:
        for back in (False, True):
            rotation = Rotation(function, form, back)
            # The last is where the tables are narrower than the heads: it need not run at all.
            *must, part = (_agrees(rotation, *setting) for setting in SETTINGS)
            if all(must) and part is not False:
                return rotation
    return None


# dtypes of heads and of tables, and the columns of these.
SETTINGS = (
    (torch.float32, torch.float32, D),
    (torch.bfloat16, torch.bfloat16, D),
    (torch.bfloat16, torch.float32, D),
    (torch.float32, torch.float32, D // 2),
)


def _agrees(
    rotation: Rotation, dtype: torch.dtype, of_tables: torch.dtype, columns: int
) -> bool | None:
    """Whether the rotation's function does what it says; None where it does not run."""
    rng = torch.Generator("cpu").manual_seed(0)
    q, k = (normal((B, heads, S, D), rng).to(dtype) for heads in (3, 1))
    # Tables whose halves differ, so that it shows which are read.
    cos, sin = (normal((B, S, columns), rng).to(of_tables) for _ in range(2))
    with torch.no_grad():
        try:
            expected = rotation.function(q, k, cos, sin)
        except Exception:  # of whatever kind: the code is somebody else's
            return None
        if not isinstance(expected, tuple) or len(expected) != 2:
            return False
        return all(map(agrees, rotation.rotated(q, k, cos, sin), expected))
