"""What this device can do at best, measured: the rooflines of the benchmarks."""

from __future__ import annotations

from functools import cache

import torch

from r1kernels.testing.timing import Call, interleaved

COPY_BYTES = 256 << 20
SIDE = {"cpu": 2048, "cuda": 8192}


@cache
def bandwidth(device: str) -> float:
    """Bytes a second, read plus written, of a large copy."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)  # zeros may be no memory
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _median(lambda: target.copy_(source), device)


@cache
def matmul(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product.

    Of FP8 on a CPU those of bf16; there these are at least those of float32, which any processor
    can widen to: without instructions for bf16, PyTorch's own product of it is no ceiling.
    """
    if device == "cpu" and dtype.itemsize < 4:
        return max(_product(device, torch.bfloat16), _product(device, torch.float32))
    return _product(device, dtype)


@cache
def _product(device: str, dtype: torch.dtype) -> float:
    side = SIDE[device]
    a = torch.randn(side, side, device=device).to(dtype)  # a GPU multiplies ones faster
    if dtype.itemsize == 1:
        one = torch.ones((), device=device)

        def product() -> torch.Tensor:
            return torch._scaled_mm(a, a.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:

        def product() -> torch.Tensor:
            return a @ a.T  # as a layer multiplies; bf16 without instructions is slow otherwise

    return 2 * side**3 / _median(product, device)


def roofline(device: str, dtype: torch.dtype, flops: float, bytes: float) -> float:
    """The least seconds for this much arithmetic and traffic."""
    return max(flops / matmul(device, dtype) if flops else 0.0, bytes / bandwidth(device))


def _median(call: Call, device: str) -> float:
    return interleaved({"": call}, device=device, seconds=0.2)[""]
