"""Argument checks: each error names the op, the argument, what was expected and what came."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32)

_CHECKED = os.environ.get("R1KERNELS_CHECKED", "0") != "0"


@contextmanager
def checked() -> Iterator[None]:
    """Until the block ends, and in the whole process, look at values that else nobody looks at.

    ``moe_route`` then raises ValueError at a NaN among its logits. On a GPU every such check waits
    for the device; under torch.compile there is none. ``R1KERNELS_CHECKED=1`` in the environment
    asks for it from the start.
    """
    global _CHECKED
    before, _CHECKED = _CHECKED, True
    try:
        yield
    finally:
        _CHECKED = before


class Shapes:
    """Checks tensors of one call against named sizes; a size is bound where it is first seen.

    >>> shapes = Shapes("linear_logprob")
    >>> shapes("hidden", hidden, "T H", FLOATS)
    >>> shapes("weight", weight, "V H", (hidden.dtype,), device=hidden.device)
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.device: torch.device | None = None

    def __call__(
        self, name: str, tensor: Tensor, dims: str, dtypes: Sequence[torch.dtype]
    ) -> Tensor:
        names = dims.split()
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{self.op}: {name}: expected a tensor of shape [{', '.join(names)}], "
                f"got {type(tensor).__name__}"
            )
        if tensor.dim() != len(names):
            raise ValueError(
                f"{self.op}: {name}: expected shape [{', '.join(names)}], got {list(tensor.shape)}"
            )
        for dim, size in zip(names, tensor.shape, strict=True):
            expected = int(dim) if dim.isdigit() else self.sizes.setdefault(dim, size)
            if size != expected:
                raise ValueError(
                    f"{self.op}: {name}: expected {dim} = {expected} in shape "
                    f"[{', '.join(names)}], got {list(tensor.shape)}"
                )
        if tensor.dtype not in dtypes:
            known = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            got = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"{self.op}: {name}: expected dtype {known}, got {got}")
        if self.device is None:
            self.device = tensor.device
        elif tensor.device != self.device:
            raise ValueError(
                f"{self.op}: {name}: expected a tensor on {self.device}, got one on {tensor.device}"
            )
        return tensor


def choice(op: str, name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{op}: {name}: expected one of {', '.join(known)}; got {value!r}")
    return value


def positive(op: str, name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{op}: {name}: expected a number above 0, got {value}")
    return value


def in_range(op: str, name: str, index: Tensor, size: int, ignore: int | None = None) -> None:
    """Every element of the CPU tensor ``index`` is in [0, size), or equals ``ignore``."""
    if index.numel() == 0:
        return
    least, most = map(int, index.aminmax())  # one pass: this runs at every call
    if most < size and (least >= 0 or least == -1 == ignore):
        return
    wrong = (index < 0) | (index >= size)
    if ignore is not None:
        wrong &= index != ignore
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{op}: {name}[{at}]: expected 0 ≤ {name} < {size}, got {int(index[at])}")


def finite(op: str, name: str, values: Tensor) -> None:
    """Every element of the CPU tensor ``values`` is a number."""
    wrong = ~torch.isfinite(values)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        where = ", ".join(map(str, at))
        raise ValueError(f"{op}: {name}[{where}]: expected a finite number, got {values[at]}")


def numbers_if_checked(op: str, name: str, values: Tensor) -> None:
    """In checked mode: no element of ``values`` is NaN."""
    if _CHECKED and not torch.compiler.is_compiling() and values.isnan().any():
        where = ", ".join(map(str, values.isnan().nonzero()[0].tolist()))
        raise ValueError(f"{op}: {name}[{where}]: expected a number, got nan")


def cumulative(op: str, name: str, cu_seqlens: Tensor, total: int) -> None:
    """The CPU tensor ``cu_seqlens`` starts at 0, never falls, and ends at ``total``."""
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != total:
        raise ValueError(
            f"{op}: {name}: expected to start at 0 and end at T = {total}, "
            f"got {ends[0]} … {ends[-1]}"
        )
    if ends != sorted(ends):
        raise ValueError(f"{op}: {name}: expected non-decreasing offsets, got {ends}")
