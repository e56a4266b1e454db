"""What a peer is, and how a function of named arguments becomes one of an op's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.tasks import Loss
from r1kernels.core.op import Op

# Takes an op's arguments by name. Gives its outputs by name, without those that it does not
# compute, or its only output.
ByName = Callable[..., "Mapping[str, Tensor] | Tensor"]


class Peer(NamedTuple):
    """``tasks``: by kind; ``ops``: by name. ``needs``: packages, as they are imported.

    ``needs_on_hopper``: packages that it needs there only, since it has kernels of its own for it.
    """

    name: str
    tasks: Mapping[str, Loss] = {}
    ops: Mapping[str, ByName] = {}
    needs: tuple[str, ...] = ()
    needs_on_hopper: tuple[str, ...] = ()
    gpu_only: bool = False
    hopper_only: bool = False

    def missing(self, device: str) -> str | None:
        """Why this peer cannot run on ``device``, or None when it can."""
        hopper = on_hopper(device)
        needs = (*self.needs, *(self.needs_on_hopper if hopper else ()))
        if absent := [name for name in needs if find_spec(name) is None]:
            return f"package {', '.join(absent)} is not installed"
        if self.hopper_only and not hopper:
            return "runs on Hopper only"
        return "runs on CUDA only" if self.gpu_only and device != "cuda" else None


def on_hopper(device: str) -> bool:
    there = device == "cuda" and torch.cuda.is_available()
    return there and torch.cuda.get_device_capability() == (9, 0)


def bind(op: Op, run: ByName) -> Callable[..., Any]:
    """``run`` as a function of the op's positional arguments, with its outputs in their order."""
    schema = op.overload._schema
    arguments = [argument.name for argument in schema.arguments]
    outputs = [output.name for output in schema.returns]

    def call(*args: Any) -> Any:
        got = run(**dict(zip(arguments, args, strict=True)))
        if isinstance(got, Tensor):
            return got
        return tuple(got.get(name) for name in outputs)

    return call


def one_temperature(temperature: Tensor | float | None) -> float:
    """Of a batch that has only one: most peers take no more."""
    if isinstance(temperature, Tensor):
        raise ValueError("takes one temperature, not one a row")
    return 1.0 if temperature is None else temperature
