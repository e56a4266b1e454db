"""Launches of kernels that have run before, without asking Triton which build of them it is.

``kernel[grid](…)`` of ``triton.jit`` binds every argument by name and makes a string of all their
types at each launch: three quarters of the time that a launch takes the host. Here the build that
Triton's ``warmup`` gives is kept by what Triton specialises on, and launched as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from r1kernels.core.reading import Reading, reading
from r1kernels.triton import INTERPRETED, current_device

# ``build[grid](*args)`` is the same, and as slow as Triton's own launch: it makes a dictionary and
# calls two lists of hooks each time. What it calls in the end has these arguments in this version.
DIRECT = triton.__version__.startswith("3.6.")

# An option of launches: what is rounded twice must not be fused into one.
UNFUSED = {"enable_fp_fusion": False}

current_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Handle(NamedTuple):
    """A build of a kernel, and the values of the parameters that were not given by position."""

    build: Any
    rest: tuple[Any, ...]
    launch: Callable[..., None] | None  # grid, stream, what is between, then all parameters
    between: tuple[Any, ...]


class Launched:
    """A kernel that is launched as Triton's own is: ``kernel[grid](*args, **constexprs)``.

    Run-time arguments are given by position, and compile-time parameters come last.
    """

    def __init__(self, jit: triton.JITFunction[Any]) -> None:
        self.jit, self.__name__ = jit, jit.__name__
        self.arg_names = list(jit.signature.parameters)
        parameters = list(jit.signature.parameters.values())
        constexprs = ["constexpr" in str(each.annotation) for each in parameters]
        self.run_time = constexprs.index(True) if True in constexprs else len(constexprs)
        if not all(constexprs[self.run_time :]):
            raise TypeError(
                f"{self.__name__}: expected the compile-time parameters after all others"
            )
        self.handles: dict[tuple[Any, ...], Handle] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        device = current_device()
        key = (
            device, specialisation(args[: self.run_time]), args[self.run_time :], *options,
            *options.values(),
        )  # fmt: skip
        handle = self.handles.get(key)
        if handle is None:
            handle = self.handles[key] = self._build(grid, args, options)
        build, rest, launch, between = handle
        assert current_stream is not None
        stream = current_stream(device)
        x, y, z = (*grid, 1, 1)[:3]
        if launch is None or _hooked():
            build[x, y, z](*args, *rest, stream=stream)
        else:
            launch(x, y, z, stream, *between, *args, *rest)

    def _build(self, grid: tuple[int, ...], args: Sequence[Any], options: dict[str, Any]) -> Handle:
        missing = list(self.jit.signature.parameters.values())[len(args) :]
        if len(args) < self.run_time:
            raise TypeError(
                f"{self.__name__}: expected {missing[0].name} by position, as all that is not "
                "known at compile time"
            )
        build = self.jit.warmup(*args, grid=grid, **options)
        rest = tuple(options.get(each.name, each.default) for each in missing)
        if not DIRECT:
            return Handle(build, rest, None, ())
        # Asking for ``run`` loads the build, after which it has a function.
        return Handle(build, rest, *_direct(build.run, build.function, build.packed_metadata))


def _direct(run: Any, function: Any, metadata: Any) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """What to call, and with what between stream and parameters; nobody hooks the launch."""
    unhooked = (metadata, None, None, None)
    if any(getattr(run, f"{kind}_scratch_size", 1) for kind in ("global", "profile")):
        return run, (function, *unhooked)
    # Without scratch memory to allocate, all that ``run`` does is to add what is known.
    known = (run.launch_cooperative_grid, run.launch_pdl, None, None)
    return run.launch, (function, *known, *unhooked)


def _hooked() -> bool:
    """Whether a profiler wants to see launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def launched(jit: Any) -> Any:
    """Decorator of what ``triton.jit`` gives, above it.

    It changes nothing in the interpreter, nor on AMD, where builds also go by the size of what a
    pointer belongs to.
    """
    return jit if INTERPRETED or torch.version.hip is not None else Launched(jit)


def specialisation(args: Sequence[Any]) -> tuple[Any, ...]:
    """What Triton makes builds of their own for, and at times more than that.

    Types, dtypes, pointers and integers that are multiples of 16, integers that are 1 or need 64
    bits, blocks of descriptors; and of whatever is none of these, a compile-time constant, the
    value.
    """
    types = tuple(map(type, args))
    return types, _specialising(types)(args)


@cache
def _specialising(types: tuple[type, ...]) -> Reading:
    terms = (term for index, kind in enumerate(types) for term in _terms(f"args[{index}]", kind))
    return reading(terms, specialisation=specialisation)


def _terms(arg: str, kind: type) -> Iterator[str]:
    """What of an argument specialises, as expressions."""
    if issubclass(kind, Tensor):
        yield from (f"{arg}.dtype", f"{arg}.data_ptr() % 16 == 0")
    elif kind is int:
        wide = f"2 * (not -(2**31) <= {arg} < 2**31) + 4 * ({arg} >= 2**63)"  # int64, uint64
        yield f"8 if {arg} == 1 else ({arg} % 16 == 0) + {wide}"
    elif issubclass(kind, tuple):
        yield f"specialisation({arg})"
    elif issubclass(kind, TensorDescriptor):
        yield from (f"{arg}.base.dtype", f"*{arg}.block_shape")
    elif issubclass(kind, tl.constexpr):
        yield f"{arg}.value"
    elif kind not in (float, bool, type(None)):  # of these the type says all
        yield arg
