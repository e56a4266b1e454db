"""The tiers of correctness: bitwise, and an error budget against a float64 truth.

The budget asks a backend to be about as exact as plain PyTorch at the same precision, measured,
rather than within a tolerance that somebody chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from r1kernels.core.op import Case, Op

FORWARD_FACTOR, BACKWARD_FACTOR = 2.0, 3.0
SLACK = 1e-6  # of the largest true magnitude, or of 1 where all is 0: a few float32 roundings
# Tensor cores keep about 14 bits of a sum of FP8 products (DeepSeek-V3, arXiv 2412.19437, 3.3.2),
# in each of the four steps that a block of 128 takes.
SLACK_OF_FP8 = 4 * 2.0**-13
FP8_PRODUCTS = ("fp8_gemm", "fp8_linear_forward", "fp8_grouped_gemm", "fp8_grouped_wgrad")
MOVED_CODES = 1000  # one in so many e4m3 codes may round the other way


@dataclass(frozen=True)
class Parity:
    """The verdict on one backend and one case.

    Args:
        error: the largest error of any output, relative to the largest magnitude of its truth;
            infinite for a difference that has no size: of shape, dtype, or bits.
        problems: one line for each thing that is wrong; empty means equal.
    """

    error: float
    problems: tuple[str, ...]


class Truth:
    """What ``op`` must give for ``args``: the PyTorch reference at working precision and in fp64.

    >>> Truth(op, case, args).check("cpp", op(*args)).problems
    ()
    """

    def __init__(self, op: Op, case: Case, args: Sequence[Any]) -> None:
        reference = op.implementations["torch"].run
        self.op, self.case = op, case
        self.working = as_tuple(reference(*args))
        self.exact = as_tuple(reference(*upcast(args)))

    def check(self, backend: str, outputs: Any) -> Parity:
        """Judge the outputs of ``backend``; an output that is None was not computed by it."""
        where = f"{self.op.name}, {backend}, case {self.case.name!r}"
        got = as_tuple(outputs)
        if len(got) != len(self.working):
            return Parity(
                float("nan"), (f"{where}: expected {len(self.working)} outputs, got {len(got)}",)
            )
        worst, problems = 0.0, []
        for index, (output, working) in enumerate(zip(got, self.working, strict=True)):
            if output is None:
                continue
            error, found = 0.0, metadata_problems(output, working)
            if not found and index not in self.op.opaque:
                if self.case.tier == "bitwise" or not working.is_floating_point():
                    found = bitwise_problems(output, working)
                elif working.dtype == torch.float8_e4m3fn:
                    found = code_problems(output, working)
                else:
                    error, found = self._budget(output, working, self.exact[index])
            worst = max(worst, inf if found and not error else error)
            problems += [f"{where}, output {index}: {problem}" for problem in found]
        return Parity(worst, tuple(problems))

    def _budget(self, got: Tensor, working: Tensor, exact: Tensor) -> tuple[float, list[str]]:
        if not exact.numel():
            return 0.0, []
        regular = exact.isfinite()
        if not regular.all():
            problems = bitwise_problems(got[~regular], working[~regular])
            if problems or not regular.any():
                return 0.0, problems
            got, working, exact = got[regular], working[regular], exact[regular]
        # What is exactly 0 is the difference of equal numbers, such as the log-probability of the
        # only token there is: a kernel that fuses a product into it keeps the product's rounding.
        scale = float(exact.abs().max()) or 1.0
        factor = BACKWARD_FACTOR if self.op.name.endswith("_backward") else FORWARD_FACTOR
        slack = SLACK_OF_FP8 if got.is_cuda and self.op.forward_name in FP8_PRODUCTS else SLACK
        # Nobody can do better than the truth rounded once, and nobody is asked to.
        ours, theirs, rounded = (
            (tensor.double() - exact).abs().nan_to_num(nan=float("inf"))
            for tensor in (got, working, exact.to(got.dtype))
        )
        problems = []
        for name, of in (("max", Tensor.max), ("mean", Tensor.mean)):
            error, budget = float(of(ours)), max(float(of(theirs)), float(of(rounded)))
            allowed = factor * budget + slack * scale
            if not error <= allowed:
                problems.append(
                    f"{name} error {error:.3g} against the fp64 truth, allowed {allowed:.3g} "
                    f"(PyTorch in {working.dtype}: {budget:.3g}; magnitude {scale:.3g})"
                )
        return float(ours.max()) / scale, problems


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def upcast(args: Sequence[Any]) -> tuple[Any, ...]:
    """``args`` with every floating-point tensor in float64."""
    return tuple(
        arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args
    )


def metadata_problems(got: Tensor, expected: Tensor) -> list[str]:
    """Differences in dtype, device, shape, and in strides where they mean anything."""
    pairs = {
        "dtype": (got.dtype, expected.dtype),
        "device": (got.device, expected.device),
        "shape": (tuple(got.shape), tuple(expected.shape)),
        "strides": (_strides(got), _strides(expected)),
    }
    return [f"{name}: expected {b}, got {a}" for name, (a, b) in pairs.items() if a != b]


def bitwise_problems(got: Tensor, expected: Tensor) -> list[str]:
    """Differences in metadata or in any bit; any NaN equals any other."""
    if problems := metadata_problems(got, expected):
        return problems
    different = _bits(got) != _bits(expected)
    if got.is_floating_point():
        different &= ~(got.isnan() & expected.isnan())
    if not different.any():
        return []
    at = tuple(different.nonzero()[0].tolist())
    count, first = int(different.sum()), list(at)
    values = f"expected {expected[at].item()}, got {got[at].item()}"
    return [f"{count} of {got.numel()} elements differ, the first at {first}: {values}"]


def code_problems(got: Tensor, expected: Tensor) -> list[str]:
    """e4m3 codes of what was computed in floating point: a few may be one step apart."""
    steps = (ordinal(got) - ordinal(expected)).abs()
    allowed = max(1, expected.numel() // MOVED_CODES)
    moved = int((steps > 0).sum())
    if (steps > 1).any():
        at = tuple((steps > 1).nonzero()[0].tolist())
        return [f"codes at {list(at)}: {expected[at].item()} expected, got {got[at].item()}"]
    if moved > allowed:
        return [f"{moved} of {expected.numel()} codes are one step apart, allowed {allowed}"]
    return []


def ordinal(codes: Tensor) -> Tensor:
    """e4m3 codes as integers in the order of their values; both zeros are 0."""
    bits = codes.contiguous().view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    if not tensor.numel():
        return ()
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(stride for size, stride in pairs if size > 1)


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
