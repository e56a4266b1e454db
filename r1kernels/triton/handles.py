"""Launches of kernels that have run before, without asking Triton which build of them it is.

``kernel[grid](…)`` of ``triton.jit`` binds every argument by name and makes a string of all their
types at each launch: three quarters of the time that a launch takes the host. Here the build that
Triton's ``warmup`` gives is kept by what Triton specialises on, and launched as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from r1kernels.triton import INTERPRETED

# ``build[grid](*args)`` is the same, and as slow as Triton's own launch: it makes a dictionary and
# calls two lists of hooks each time. What it calls in the end has these arguments in this version.
DIRECT = triton.__version__.startswith("3.6.")


class Handle(NamedTuple):
    """A build of a kernel, and the values of the parameters that were not given by position."""

    build: Any
    rest: tuple[Any, ...]
    run: Callable[..., None] | None
    function: Any
    metadata: Any


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
        active = driver.active
        device = active.get_current_device()
        key = (
            device, specialisation(args[: self.run_time]), args[self.run_time :], *options,
            *options.values(),
        )  # fmt: skip
        handle = self.handles.get(key)
        if handle is None:
            handle = self.handles[key] = self._build(grid, args, options)
        build, rest, run, function, metadata = handle
        stream = active.get_current_stream(device)
        x, y, z = (*grid, 1, 1)[:3]
        if run is None or _hooked():
            build[x, y, z](*args, *rest, stream=stream)
        else:
            run(x, y, z, stream, function, metadata, None, None, None, *args, *rest)

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
            return Handle(build, rest, None, None, None)
        # Asking for ``run`` loads the build, after which it has a function.
        return Handle(build, rest, build.run, build.function, build.packed_metadata)


def _hooked() -> bool:
    """Whether a profiler wants to see launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(hook is not None and getattr(hook, "calls", True) for hook in (enter, leave))


def launched(jit: Any) -> Any:
    """Decorator of what ``triton.jit`` gives, above it.

    It changes nothing in the interpreter, nor on AMD, where builds also go by the size of what a
    pointer belongs to.
    """
    return jit if INTERPRETED or torch.version.hip is not None else Launched(jit)


class Layout(NamedTuple):
    """Where arguments of some types have what specialises."""

    tensors: Callable[[Sequence[Any]], tuple[Any, ...]]  # picks them
    integers: Callable[[Sequence[Any]], tuple[Any, ...]]
    others: tuple[tuple[int, Callable[[Any], Any]], ...]  # place, and what of it


@cache
def layout(types: tuple[type, ...]) -> Layout:
    tensors = [place for place, kind in enumerate(types) if issubclass(kind, Tensor)]
    integers = [place for place, kind in enumerate(types) if kind is int]
    others = {
        place: next((how for known, how in OTHERS.items() if issubclass(kind, known)), _itself)
        for place, kind in enumerate(types)
        # Of these the type says all.
        if kind not in (int, float, bool, type(None)) and place not in tensors
    }
    return Layout(_picker(tensors), _picker(integers), tuple(others.items()))


def _picker(places: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


def specialisation(args: Sequence[Any]) -> tuple[Any, ...]:
    """What Triton makes builds of their own for, and at times more than that.

    Types, dtypes, pointers and integers that are multiples of 16, integers that are 1 or need 64
    bits, blocks of descriptors; and of whatever is none of these, a compile-time constant, the
    value.
    """
    types = tuple(map(type, args))
    tensors, integers, others = layout(types)
    given = tensors(args)
    return (
        types,
        *map(_dtype, given),
        *[address % 16 == 0 for address in map(Tensor.data_ptr, given)],
        *[
            4 if number == 1 else (number % 16 == 0) + 2 * (number.bit_length() > 31)
            for number in integers(args)
        ],
        *[how(args[place]) for place, how in others],
    )


def _blocks(descriptor: TensorDescriptor) -> tuple[Any, ...]:
    return (descriptor.base.dtype, *descriptor.block_shape)


def _itself(constant: Any) -> Any:
    return constant


_dtype = attrgetter("dtype")
OTHERS: dict[type, Callable[[Any], Any]] = {
    tuple: specialisation,
    TensorDescriptor: _blocks,
    tl.constexpr: attrgetter("value"),
}
