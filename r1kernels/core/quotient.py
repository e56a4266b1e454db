"""Division by a number, rounded the same way on every device."""

from __future__ import annotations

from torch import Tensor


def quotient(x: Tensor, number: float) -> Tensor:
    """``x / number`` with one rounding, of the quotient.

    On CUDA PyTorch multiplies a tensor by the reciprocal of a Python number, which is rounded too:
    one ulp away from the division that the CPU and the kernels do. A divisor on the device itself
    is divided by.
    """
    return x / x.new_full((), number)
