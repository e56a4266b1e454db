"""How far results are from others that were rounded in the same places."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_but_last_bits(got: Tensor, expected: Tensor, *, moved: float = 0.002) -> None:
    """Equal, but where a float32 that differs in its last bits was rounded the other way.

    Of 16-bit numbers at most the fraction ``moved`` may differ, by a unit of the largest one;
    others may be off by 1e-6 of it.
    """
    got, expected = got.detach(), expected.detach()
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    largest = float(expected.abs().max())
    if got.itemsize == 2:
        different = got != expected
        assert float(different.float().mean()) <= moved
        limit = largest * 2 * torch.finfo(got.dtype).eps
    else:
        limit = largest * 1e-6
    assert float((got.double() - expected.double()).abs().max()) <= limit


def saved_by(result: Tensor) -> list[Tensor]:
    """The tensors that the backward pass of the op which made ``result`` keeps."""
    node = result.grad_fn
    assert node is not None
    return [tensor for tensor in node.saved_tensors if tensor is not None]
