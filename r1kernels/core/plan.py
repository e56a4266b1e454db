"""What of a call of an op follows from the kinds of its arguments, and need be found only once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core.reading import Reading, reading

# What PyTorch's dispatcher hands on as it is, by declared type; of an int it would make a float.
TENSORS = (Tensor, torch.nn.Parameter)
PLAIN: dict[str, tuple[type, ...]] = {
    "Tensor": TENSORS, "float": (float,), "int": (int,), "bool": (bool,), "str": (str,),
    "ScalarType": (torch.dtype,),
}  # fmt: skip
PLAIN |= {f"Optional[{kind}]": (*types, type(None)) for kind, types in PLAIN.items()}
PLAIN["List[float]"] = (list,)  # of nothing else


class Plan(NamedTuple):
    """All that follows from the types, dtypes and devices of a call's arguments."""

    device: str  # its type
    direct: bool  # PyTorch's dispatcher would bring these arguments here unchanged
    requires_grad: bool  # any of them
    names: dict[str, tuple[str, ...]]  # of implementations, by backend, as far as anyone has asked
    taken: dict[str, bool | str]  # by implementation: True or why not
    settled: dict[tuple[str, ...] | None, str]  # what runs, by pin, where no more than this counts
    preferred: tuple[str, ...]
    implementations: dict[str, Any]


def kinds_of(args: Sequence[Any]) -> tuple[Any, ...]:
    """The types of the arguments and of what is in lists, and whatever is a kind of a tensor."""
    types = tuple(map(type, args))
    return types, _kinds(types)(args)


@cache
def _kinds(types: tuple[type, ...]) -> Reading:
    of_tensors = (".dtype", ".device", ".is_neg()", ".requires_grad")  # is_neg: memory has −values
    return reading(
        term
        for index, kind in enumerate(types)
        for term in (
            [f"args[{index}]{what}" for what in of_tensors]
            if issubclass(kind, Tensor)
            else [f"*map(type, args[{index}])"] * issubclass(kind, list)
        )
    )


def as_declared(overload: Any, args: Sequence[Any]) -> bool:
    """Whether PyTorch's dispatcher would bring these arguments to the op's kernel as they are."""
    declared = overload._schema.arguments
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return (
        len(declared) == len(args)
        and len({tensor.device for tensor in tensors}) == 1
        and not any(tensor.is_neg() for tensor in tensors)
        and all(
            type(arg) in PLAIN.get(str(argument.real_type), ())
            and not (isinstance(arg, list) and any(type(each) is not float for each in arg))
            for argument, arg in zip(declared, args, strict=True)
        )
    )


def observed() -> bool:
    """Whether anybody must see calls pass PyTorch's dispatcher: a tracer, a mode, a profiler."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )
