"""Argument checks: each error names the op, the argument, what was expected and what came."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from r1kernels.core.names import nearest

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32)

# What makes of a tensor with one dimension too many, "T" being its first, what is expected.
PACK = (
    "of padded sequences [B, L, …] r1kernels.pack(hidden_states, input_ids, completion_mask) "
    "makes packed ones, with the shift by one; values[completion_mask.bool()] packs what is beside"
)
FLATTEN = ".flatten(0, 1) makes it of [B, L, …]"

_CHECKED = os.environ.get("R1KERNELS_CHECKED", "0") != "0"


@contextmanager
def checked() -> Iterator[None]:
    """Until the block ends, and in the whole process, look at values that else nobody looks at.

    On a GPU every op then checks the values that it checks on a CPU anyway (targets, temperatures,
    offsets, indices), and everywhere ``moe_route`` raises ValueError at a NaN among its logits. On
    a GPU every such check waits for the device; under torch.compile there is none.
    ``R1KERNELS_CHECKED=1`` in the environment does it for a process.
    """
    global _CHECKED
    before, _CHECKED = _CHECKED, True
    try:
        yield
    finally:
        _CHECKED = before


def checking() -> bool:
    """Whether this is within ``checked()``."""
    return _CHECKED


class Shapes:
    """Checks tensors of one call against named sizes; a size is bound where it is first seen.

    >>> shapes = Shapes("linear_logprob")
    >>> shapes("hidden", hidden, "T H", FLOATS)
    >>> shapes("weight", weight, "V H", (hidden.dtype,), device=hidden.device)

    Args:
        op: whose arguments they are.
        padded: what makes [T, …] of a tensor that has one dimension more.
    """

    def __init__(self, op: str, padded: str = FLATTEN) -> None:
        self.op, self.padded = op, padded
        self.eager = not torch.compiler.is_compiling()
        self.sizes: dict[str, int] = {}
        self.bound_by: dict[str, str] = {}
        self.device: torch.device | None = None
        self.dtypes: dict[str, torch.dtype] = {}

    def __call__(
        self, name: str, tensor: Tensor, dims: str, dtypes: Sequence[torch.dtype]
    ) -> Tensor:
        names, shape = dims.split(), getattr(tensor, "shape", ())
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{self.op}: {name}: expected a tensor of shape [{', '.join(names)}], "
                f"got {described(tensor)}{_to_a_tensor(tensor)}"
            )
        if self.eager and tensor.layout != torch.strided:
            dense(self.op, name, tensor)
        if len(shape) != len(names):
            raise ValueError(
                f"{self.op}: {name}: expected shape [{', '.join(names)}], got "
                f"{list(shape)}{self._reshaped(names, tensor)}"
            )
        for dim, size in zip(names, shape, strict=True):
            expected = self.sizes.get(dim)
            if expected is None:
                expected = self.sizes[dim] = int(dim) if dim.isdigit() else size
                self.bound_by[dim] = "" if dim.isdigit() else name
            if size != expected:
                raise ValueError(
                    f"{self.op}: {name}: expected {dim} = {expected} in shape "
                    f"[{', '.join(names)}], got {list(shape)}{self._resized(dim, names, tensor)}"
                )
        dtype, device = tensor.dtype, tensor.device
        if dtype not in dtypes:
            known = " or ".join(map(dtype_name, dtypes))
            notes = [_converted(dtype, dtypes)]
            if len(dtypes) == 1:
                same = [seen for seen, kind in self.dtypes.items() if kind == dtypes[0]]
                notes += [f"{seen} has that dtype" for seen in same[-1:]]
            raise TypeError(
                f"{self.op}: {name}: expected dtype {known}, got {dtype_name(dtype)}"
                f"{_in_brackets(notes)}"
            )
        if self.device is None:
            self.device = device
        elif device != self.device:
            first = next(iter(self.dtypes))
            raise ValueError(
                f"{self.op}: {name}: expected a tensor on {self.device}, got one on "
                f"{device} ({first} is on {self.device})"
            )
        self.dtypes[name] = dtype
        return tensor

    def _reshaped(self, names: Sequence[str], tensor: Tensor) -> str:
        """What makes the number of dimensions right."""
        if tensor.dim() == 0 and len(names) == 1:
            return f" (.expand({self.sizes.get(names[0], 'n')}) makes one for each of it)"
        if names[0] == "N1" and "N1" in self.bound_by:
            return f" (the shape of {self.bound_by['N1']})"
        if tensor.dim() != len(names) + 1:
            return ""
        if tensor.shape[-1] == 1 and not (names[0] == "T" and len(names) > 1):
            return " (.squeeze(-1) drops the last dimension)"
        return f" ({self.padded})" if names[0] == "T" else ""

    def _resized(self, dim: str, names: Sequence[str], tensor: Tensor) -> str:
        """Where the expected size comes from, and whether it is there in another place."""
        source = self.bound_by.get(dim)
        notes = [f"{dim} is that of {source}"] if source else []
        if dim == "T" and len(names) == 1 and self.sizes.get("V") == tensor.shape[0]:
            notes.append(f"{self.bound_by.get('V')} has as many rows: are the two exchanged?")
        if dim == "B" and source == "cu_seqlens":
            notes = ["cu_seqlens has B + 1 elements, [0, *lengths.cumsum(0)]"]
        expected, shape = self.sizes.get(dim), list(tensor.shape)
        other = -2 if dim == names[-1] else -1
        if len(names) > 1 and dim in names[-2:] and shape[other] == expected:
            notes.append("is it transposed? .mT has that shape")
        if dim.endswith("+1") and [size + 1 for size in shape] == [expected]:
            notes.append(f"of lengths, {dim} offsets are [0, *lengths.cumsum(0)]")
        return _in_brackets(notes)


def leading(tensor: Tensor, last: str) -> str:
    """Dimensions for ``Shapes`` of a tensor that may have any number of them before its last."""
    if not isinstance(tensor, Tensor) or tensor.dim() == 0:
        return f"… {last}"
    return " ".join([*(f"N{i}" for i in range(1, tensor.dim())), last])


@contextmanager
def on_behalf_of(op: str) -> Iterator[None]:
    """Errors of another op that is called in here bear the name of ``op``, which the caller knows.

    Its arguments must have the same names.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        inner, _, told = str(error).partition(": ")
        for kind in (ValueError, TypeError):
            if type(error) is kind and inner.isidentifier() and told:
                raise kind(f"{op}: {told}") from None
        raise


def _in_brackets(notes: Sequence[str]) -> str:
    said = "; ".join(note for note in notes if note)
    return f" ({said})" if said else ""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def described(value: Any) -> str:
    """A value for the end of an error: its type, and what it is where that is short."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    text = repr(value)
    short = isinstance(value, (tuple, list, dict)) and len(text) <= 40 and "\n" not in text
    return f"{type(value).__name__} {text}" if short else type(value).__name__


def known_options(op: str, given: Collection[str], known: Collection[str]) -> None:
    """The names in ``given`` are all among the known ones, as Python itself would ask."""
    for name in given:
        if name not in known:
            hint = nearest(name, known)
            raise TypeError(f"{op}: unexpected keyword argument {name!r}{hint}")


def dense(op: str, name: str, tensor: Tensor) -> None:
    """Not sparse and not nested. A graph's backward pass must not even ask for the layout."""
    if not torch.compiler.is_compiling() and tensor.layout != torch.strided:
        hint = "(.values() has its rows)" if tensor.layout == torch.jagged else "(.to_dense())"
        raise TypeError(f"{op}: {name}: expected a dense tensor, got layout {tensor.layout} {hint}")


def choice(op: str, name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(
            f"{op}: {name}: expected one of {', '.join(known)}; got {described(value)}"
            f"{nearest(value, known)}"
        )
    return value


def number(op: str, name: str, value: float, *, infinite: bool = False) -> float:
    """``value`` is a Python number (NumPy's count too), finite unless it may be ``infinite``."""
    if type(value) is int or (type(value) is float and value - value == 0):  # mostly
        return value
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, Real)) or isinstance(
        value, bool
    ):
        hint = " (.item() makes one)" if isinstance(value, Tensor) and value.numel() == 1 else ""
        raise TypeError(f"{op}: {name}: expected a number, got {described(value)}{hint}")
    if value != value or (not infinite and abs(value) == torch.inf):
        kind = "number" if infinite else "finite number"
        raise ValueError(f"{op}: {name}: expected a {kind}, got {value}")
    return value


def positive(op: str, name: str, value: float) -> float:
    if isinstance(value, float) and value != value:
        raise ValueError(f"{op}: {name}: expected a number above 0, got nan")
    if not number(op, name, value, infinite=True) > 0:
        raise ValueError(f"{op}: {name}: expected a number above 0, got {value}")
    return value


def whole(op: str, name: str, value: int) -> int:
    if isinstance(number(op, name, value), float):
        raise TypeError(f"{op}: {name}: expected a whole number, got {value}")
    return value


def count(op: str, name: str, value: int, least: int = 1) -> int:
    """``value`` is a whole number, ``least`` or more."""
    if whole(op, name, value) < least:
        raise ValueError(f"{op}: {name}: expected a whole number, {least} or more, got {value}")
    return value


def flag(op: str, name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name}: expected True or False, got {described(value)}")
    return value


def may_look(tensor: Tensor) -> bool:
    """Whether values may be asked for: there are some, and no GPU is waited for unasked."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)  # a fake one has no values
    here = _CHECKED or tensor.device.type == "cpu"
    return plain and here and not torch.compiler.is_compiling()


def between(op: str, name: str, value: int, least: int, most: int) -> int:
    """``value`` is a whole number from ``least`` to ``most``."""
    if not least <= whole(op, name, value) <= most:
        raise ValueError(f"{op}: {name}: expected {least} ≤ {name} ≤ {most}, got {value}")
    return value


def above_zero(op: str, name: str, values: Tensor) -> None:
    """Every element of ``values`` is a number above 0, and finite."""
    if values.numel() == 0:
        return
    least, most = values.aminmax()  # one pass: this runs at every call; NaN if any is
    if not 0 < float(least) <= float(most) < torch.inf:
        wrong = ~((values > 0) & (values < torch.inf))
        where = ", ".join(map(str, wrong.nonzero()[0].tolist()))
        raise ValueError(
            f"{op}: {name}[{where}]: expected a finite number above 0, "
            f"got {float(values[wrong][0])}"
        )


def from_zero(op: str, name: str, values: Tensor, below: float) -> None:
    """Every element of ``values`` is a number from 0 on, and below ``below``."""
    if values.numel() == 0:
        return
    least, most = values.aminmax()  # one pass: this runs at every call; NaN if any is
    if not 0 <= float(least) <= float(most) < below:
        wrong = ~((values >= 0) & (values < below))
        where = ", ".join(map(str, wrong.nonzero()[0].tolist()))
        raise ValueError(
            f"{op}: {name}[{where}]: expected 0 ≤ {name} < {below}, got {float(values[wrong][0])}"
        )


def int64(op: str, name: str, value: int) -> int:
    if not -(2**63) <= whole(op, name, value) < 2**63:
        raise ValueError(f"{op}: {name}: expected an integer of 64 bits, got {value}")
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
        wrong &= index.long() != ignore  # which narrower integers may not hold
    if wrong.any():
        at = int(wrong.nonzero()[0])
        got = int(index[at])
        wanted = f"0 ≤ {name} < {size}" + (", or -1 for none" if ignore == -1 else "")
        hint = ""
        if got == -100 and name == "target":
            hint = (
                " (a label of a row that does not count: leave it out by mask=target != -100 where "
                "a mask is taken, or by indexing all rows with that)"
            )
        raise ValueError(f"{op}: {name}[{at}]: expected {wanted}, got {got}{hint}")


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


def offsets(op: str, name: str, ends: Tensor, rows: int, of: str) -> None:
    """The CPU tensor ``ends`` starts at 0, never falls, and ends at the ``rows`` of ``of``."""
    last = int(ends[-1]) if ends.numel() else 0
    if last > rows:
        raise ValueError(f"{op}: {name}: expected at most P = {rows}, that of {of}, got {last}")
    cumulative(op, name, ends, last)


def cumulative(op: str, name: str, cu_seqlens: Tensor, total: int, of: str = "") -> None:
    """The CPU tensor ``cu_seqlens`` starts at 0, never falls, and ends at T = ``total``.

    of: the argument that T was taken from.
    """
    ends = cu_seqlens.tolist()
    if not ends:
        raise ValueError(f"{op}: {name}: expected at least one offset, 0; got none")
    if ends[0] == 0 and ends[-1] == total and ends == sorted(ends):
        return
    hint = f" (T is that of {of})" if of and ends[-1] != total else ""
    if min(ends) >= 0 and sum(ends) == total and len(ends) > 1:
        hint = f" (these look like lengths: {name} is [0, *lengths.cumsum(0)])"
    elif ends[0] != 0 and ends[-1] == total:
        hint = f" (these look like ends: {name} is [0, *ends])"
    if ends[0] != 0 or ends[-1] != total:
        raise ValueError(
            f"{op}: {name}: expected to start at 0 and end at T = {total}, "
            f"got {ends[0]} … {ends[-1]}{hint}"
        )
    raise ValueError(f"{op}: {name}: expected non-decreasing offsets, got {_shown(ends)}{hint}")


def _shown(values: list[int]) -> str:
    """The start of a list that may be of thousands."""
    return str(values) if len(values) <= 16 else f"{str(values[:16])[:-1]}, …]"


def _to_a_tensor(value: Any) -> str:
    """What makes a tensor of ``value``."""
    if isinstance(getattr(value, "weight", None), Tensor):
        return " (.weight is one)"
    like = isinstance(value, (bool, int, float, list, tuple)) or hasattr(value, "__array__")
    return " (torch.as_tensor makes one)" if like else ""


def _converted(dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> str:
    """What makes one of ``dtypes`` of ``dtype``."""
    if torch.bool in dtypes:
        return ".bool() makes it"
    if torch.int64 in dtypes:
        return ".long() makes it"
    if torch.float8_e4m3fn in dtypes:
        return "fp8_quantize makes it"
    if dtype.is_floating_point or dtypes[0] == torch.float32:
        return f".to(torch.{dtype_name(dtypes[0])}) makes it"
    return ""
