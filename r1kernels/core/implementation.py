"""One implementation of an op: the backend that it is of, and what it can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from r1kernels.core import native

Predicate = Callable[..., "bool | str"]


def always(*args: Any) -> bool:
    return True


@dataclass(frozen=True)
class Implementation:
    """A function with the signature of an op's reference, and where it may run.

    A backend may have several of an op: variants, each for an architecture or for some arguments,
    and a plain one for all others. Each has its own tests, benchmarks and records, under its name.

    Args:
        op: the name of the op.
        backend: "torch" (the reference), "cpp", "cuda", "triton", or one that was plugged in.
        variant: what tells it from the others of its backend, e.g. "sm90"; "" for the plain one.
        run: the function.
        archs: GPUs that it is compiled for, by architecture, e.g. ("sm_90",); none: any.
        takes: True, or why not, by the types, dtypes and devices of the arguments alone.
        when: the same by anything else, asked at every call whose arguments it takes.
        guarded: unasked it runs only on a device where a record says that it is right and faster
            (``r1kernels/core/device_records.py``); it can be pinned anywhere.
    """

    op: str
    backend: str
    variant: str
    run: Callable[..., Any]
    archs: tuple[str, ...] = ()
    takes: Predicate = always
    when: Predicate = always
    guarded: bool = False

    @property
    def name(self) -> str:
        """As it is pinned, explained and recorded: "cuda", or "cuda:sm90"."""
        return f"{self.backend}:{self.variant}" if self.variant else self.backend

    def takes_kinds_of(self, args: Sequence[Any]) -> bool | str:
        """True, or why not, by architecture, types, dtypes and devices: asked once for each."""
        taken = self.takes(*args)
        if taken is not True or not self.archs:
            return taken
        device = device_of(args)
        # Elsewhere there is an emulator or an interpreter, which is of no architecture.
        if device.type != "cuda" or (arch := native.architecture(device)) in self.archs:
            return True
        return f"is for {' and '.join(self.archs)}, got {arch}"

    def able(self, *args: Any) -> bool | str:
        """True, or the reason why it cannot run with these arguments."""
        taken = self.takes_kinds_of(args)
        return self.when(*args) if taken is True else taken


def device_of(args: Sequence[Any]) -> torch.device:
    """Of the first tensor."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device
    return torch.device("cpu")
