"""Launches by kept handles: the build that Triton would choose, by all that it would choose by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

tl = pytest.importorskip("triton.language")
handles = pytest.importorskip("r1kernels.triton.handles")

from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from tests.core.test_host_time import counted  # noqa: E402


class Pair(NamedTuple):
    values: Any
    count: Any


class Build:
    """What Triton's ``warmup`` gives, launching nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.function, self.packed_metadata = object(), object()

    def run(self, *given: Any) -> None:
        *grid, stream, function, metadata, launch_metadata, enter, leave = given[:9]
        assert (function, metadata) == (self.function, self.packed_metadata)
        assert launch_metadata is enter is leave is None
        self.launches.append((tuple(grid), given[9:], stream))

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, stream: self.launches.append((grid, args, stream))


class Kernel:
    """As much of ``triton.jit``'s function as handles use."""

    __name__ = "kernel"

    def __init__(self, function: Callable[..., None]) -> None:
        self.signature = inspect.signature(function)
        self.arg_names = list(self.signature.parameters)
        self.builds: list[Build] = []

    def warmup(self, *args: Any, grid: tuple[int, ...], **options: Any) -> Build:
        self.builds.append(Build())
        return self.builds[-1]


class Driver:
    device, stream = 0, 7


def function(x, y, n, eps, BLOCK: tl.constexpr, EVEN: tl.constexpr = True) -> None:  # type: ignore[no-untyped-def]
    pass


@pytest.fixture(params=[True, False], ids=["direct", "by Triton's way"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    current = Driver()
    monkeypatch.setattr(handles, "DIRECT", request.param)
    monkeypatch.setattr(handles, "current_device", lambda: current.device)
    monkeypatch.setattr(handles, "current_stream", lambda device: current.stream)
    return current


def launched() -> tuple[Any, Kernel]:
    kernel = Kernel(function)
    return handles.Launched(kernel), kernel


X = torch.zeros(64)


def test_a_build_gets_every_argument_in_order_and_the_current_stream(driver: Driver) -> None:
    kernel, jit = launched()
    for stream in (7, 8):
        driver.stream = stream
        kernel[(3,)](X, None, 5, 0.5, BLOCK=64, num_warps=4)
    (build,) = jit.builds
    assert build.launches == [((3, 1, 1), (X, None, 5, 0.5, 64, True), s) for s in (7, 8)]
    kernel[(3, 2)](X, None, 5, 0.5, 64, False, num_warps=4)
    assert jit.builds[1].launches == [((3, 2, 1), (X, None, 5, 0.5, 64, False), 8)]


# Pairs of arguments in place of (X, None, 5, 0.5) and of BLOCK, and whether Triton may build twice.
SAME: list[tuple[Any, Any]] = [
    ((X, None, 5, 0.5), (torch.ones(9), None, 7, 2.5)),
    ((X, None, 32, 0.5), (X, None, 64, 0.5)),
    ((Pair(X, 3), None, 5, 0.5), (Pair(X + 1, 5), None, 5, 0.5)),
]
OTHER: dict[str, tuple[Any, Any]] = {
    "dtype": ((X, None, 5, 0.5), (X.double(), None, 5, 0.5)),
    "None": ((X, None, 5, 0.5), (X, X, 5, 0.5)),
    "alignment": ((X, None, 5, 0.5), (X[1:], None, 5, 0.5)),
    "multiple of 16": ((X, None, 5, 0.5), (X, None, 48, 0.5)),
    "one": ((X, None, 5, 0.5), (X, None, 1, 0.5)),
    "64 bits": ((X, None, 5, 0.5), (X, None, 2**31 + 1, 0.5)),
    "64 bits, a multiple of 16": ((X, None, -(2**31), 0.5), (X, None, 2**32, 0.5)),
    "unsigned": ((X, None, 2**31 + 1, 0.5), (X, None, 2**63 + 1, 0.5)),
    "float": ((X, None, 0, 0.5), (X, None, 0.0, 0.5)),
    "bool": ((X, None, 1, 0.5), (X, None, True, 0.5)),
    "within a tuple": ((Pair(X, 3), None, 5, 0.5), (Pair(X, 1), None, 5, 0.5)),
    "word in a tuple": (
        (Pair(X, tl.constexpr("a")), None, 5, 0.5), (Pair(X, tl.constexpr("b")), None, 5, 0.5)
    ),
    "kind of tuple": ((Pair(X, 3), None, 5, 0.5), ((X, 3), None, 5, 0.5)),
    "block of a descriptor": (
        (TensorDescriptor.from_tensor(X.view(8, 8), [8, 4]), None, 5, 0.5),
        (TensorDescriptor.from_tensor(X.view(8, 8), [4, 4]), None, 5, 0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", SAME)
def test_what_triton_does_not_distinguish_shares_a_handle(pair: Any, driver: Driver) -> None:
    kernel, jit = launched()
    for args in (*pair, *pair):
        kernel[(1,)](*args, BLOCK=64)
    assert len(jit.builds) == 1


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_whatever_specialises_has_its_own_build(pair: Any, driver: Driver) -> None:
    kernel, jit = launched()
    for args in (*pair, *pair):
        kernel[(1,)](*args, BLOCK=64)
    assert [len(build.launches) for build in jit.builds] == [2, 2]


def test_constants_options_and_devices_have_their_own_builds(driver: Driver) -> None:
    kernel, jit = launched()
    for options in ({"BLOCK": 64}, {"BLOCK": 32}, {"BLOCK": 32, "num_warps": 8}):
        kernel[(1,)](X, None, 5, 0.5, **options)
    driver.device = 1
    kernel[(1,)](X, None, 5, 0.5, BLOCK=64)
    assert len(jit.builds) == 4


def test_what_is_not_given_by_position_is_named(driver: Driver) -> None:
    kernel, _ = launched()
    with pytest.raises(TypeError, match="kernel: expected eps by position"):
        kernel[(1,)](X, None, 5, eps=0.5, BLOCK=64)


def test_a_parameter_of_the_run_after_a_constant_is_refused() -> None:
    def mixed(x, BLOCK: tl.constexpr, n) -> None:  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(TypeError, match="compile-time parameters after all others"):
        handles.Launched(Kernel(mixed))


def test_whoever_hooks_launches_sees_them(driver: Driver) -> None:
    kernel, jit = launched()
    kernel[(1,)](X, None, 5, 0.5, BLOCK=64)
    jit.builds[0].run = None  # type: ignore[method-assign]
    hook = handles.knobs.runtime.launch_enter_hook
    seen = print
    hook.add(seen)
    try:
        kernel[(1,)](X, None, 5, 0.5, BLOCK=64)
    finally:
        hook.remove(seen)
    assert len(jit.builds[0].launches) == 2


class Launcher:
    """What Triton's build calls, which hands on what is known of the build."""

    launch_cooperative_grid, launch_pdl = True, False
    global_scratch_size, profile_scratch_size = 0, 0

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def launch(self, *given: Any) -> None:
        self.given.append(given)

    def __call__(self, *given: Any) -> None:
        raise AssertionError("it was asked although it has nothing to allocate")


def test_without_scratch_memory_the_launcher_is_passed_by() -> None:
    run = Launcher()
    launch, between = handles._direct(run, "function", "metadata")
    launch(1, 1, 1, 7, *between, X)
    # As CudaLauncher: function, cooperative grid, pdl, both scratches, metadata, and no hooks.
    known = ("function", True, False, None, None, "metadata", None, None, None)
    assert run.given == [(1, 1, 1, 7, *known, X)]


@pytest.mark.parametrize("kind", ["global", "profile"])
def test_a_launcher_that_allocates_is_asked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Launcher()
    monkeypatch.setattr(run, f"{kind}_scratch_size", 16, raising=False)
    launch, between = handles._direct(run, "function", "metadata")
    assert launch is run
    assert between == ("function", "metadata", None, None, None)


def test_a_launch_takes_few_functions(driver: Driver) -> None:
    kernel, _ = launched()
    x: Tensor = torch.zeros(8)
    assert counted(lambda: kernel[(1,)](x, x, 5, 0.5, BLOCK=64, num_warps=4)) <= 30
