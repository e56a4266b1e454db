"""What all Triton kernels share: how they are plugged in, launched, compiled and interpreted.

An op names the module of its family that plugs in its kernel. It is imported at the first call that
could run there, since importing Triton takes a second. With ``TRITON_INTERPRET=1`` in the
environment before that, kernels run in Triton's interpreter, on CPU tensors too where the backend
is pinned: slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch

from r1kernels.core.implementation import Predicate, always
from r1kernels.core.op import LOADERS, Op

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# As Triton has them, which are made for use in kernels: there a call takes 2 µs.
def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@cache
def load(module: str) -> str | None:
    """Import ``module``, which plugs in kernels, once; the reason why there are none, or None."""
    try:
        if INTERPRETED:
            import_module(f"{__name__}.interpreted")
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "Triton is not installed (pip install triton)"
    return None


LOADERS["triton"] = load

# torch.cuda.current_device without its questions whether CUDA is there: a tensor on it is.
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def plug_in(
    op: Op,
    takes: Predicate = always,
    *,
    variant: str = "",
    archs: Sequence[str] = (),
    when: Predicate = always,
    guarded: bool = False,
) -> Callable[..., Any]:
    """Decorator: the function, of the reference's signature, is a Triton implementation of ``op``.

    The arguments are those of ``Implementation``; ``takes`` and ``when`` are asked after device and
    dtype are known to be right.
    """

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        def on_device(first: torch.Tensor, *rest: Any) -> Any:
            where = first.get_device()  # Triton launches on the current device
            if where < 0 or where == current_device():
                return run(first, *rest)
            with torch.cuda.device(where):
                return run(first, *rest)

        def of_kinds(*args: Any) -> bool | str:
            able_to = able(args)
            return takes(*args) if able_to is True else able_to

        op.implementation(
            "triton", variant, archs=archs, takes=of_kinds, when=when, guarded=guarded
        )(on_device)
        return run

    return add


def able(args: tuple[Any, ...]) -> bool | str:
    """True, or the reason why no Triton kernel can take these arguments."""
    for arg in args:
        if not isinstance(arg, torch.Tensor):
            continue
        if arg.device.type != "cuda" and not INTERPRETED:
            return f"takes cuda tensors, got one on {arg.device}"
        if arg.is_floating_point() and arg.dtype not in DTYPES:
            return (
                f"takes float32, bfloat16 and float16, got {str(arg.dtype).removeprefix('torch.')}"
            )
    return True
