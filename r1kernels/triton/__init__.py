"""Triton kernels: importing ``<module>.py`` plugs in those for ``r1kernels/ops/<module>.py``.

It is imported at the first call that could run there, since importing Triton takes a second. With
``TRITON_INTERPRET=1`` in the environment before that, kernels run in Triton's interpreter, on CPU
tensors too where the backend is pinned: slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from r1kernels.op import Op, Predicate

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# As Triton has them, which are made for use in kernels: there a call takes 2 µs.
def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@cache
def load(module: str) -> str | None:
    """Import the kernels of ``module`` once; the reason why there are none, or None."""
    if not (Path(__file__).parent / f"{module}.py").exists():
        return "r1kernels/triton has no kernel of it"
    try:
        if INTERPRETED:
            import_module(f"{__name__}.interpreted")
        import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "Triton is not installed (pip install triton)"
    return None


def plug_in(op: Op, when: Predicate = lambda *args: True) -> Callable[..., Any]:
    """Decorator: the function, of the reference's signature, is the Triton backend of ``op``.

    ``when`` is asked after device and dtype are known to be right.
    """

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        def on_device(*args: Any) -> Any:  # Triton launches on the current device
            where = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
            if where.type != "cuda" or where.index == torch.cuda.current_device():
                return run(*args)
            with torch.cuda.device(where):
                return run(*args)

        op.backend("triton", takes=lambda *args: able(args), when=when)(on_device)
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
