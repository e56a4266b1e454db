"""PyTorch's own FP8 product as a backend of fp8_gemm: never preferred, for those who pin it.

    with r1kernels.using("scaled_mm", FP8_GEMM): ...

It is cuBLAS or CUTLASS on a GPU, oneDNN on the CPU. What it can multiply depends on the recipe;
fast accumulation, which sums beyond 128 in 14 bits, is off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from r1kernels.fp8.format import BLOCK, blocks
from r1kernels.fp8.gemm import FP8_GEMM

RECIPES = {
    (ScalingType.TensorWise, ScalingType.TensorWise),
    (ScalingType.RowWise, ScalingType.RowWise),
    (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128),
    (ScalingType.BlockWise1x128, ScalingType.BlockWise1x128),
}


def recipe(data: Tensor, scale: Tensor) -> ScalingType | None:
    """PyTorch's name for the granularity of [R, K] codes, or None."""
    rows, columns = data.shape
    by_block = scale.shape[1] == blocks(columns)
    if scale.numel() == 1:
        return ScalingType.TensorWise
    if scale.shape == (rows, 1):
        return ScalingType.RowWise
    if scale.shape[0] == rows and by_block:
        return ScalingType.BlockWise1x128
    return ScalingType.BlockWise128x128 if scale.shape[0] == blocks(rows) and by_block else None


def usable(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    out_dtype: torch.dtype, transposed: bool,
) -> bool | str:  # fmt: skip
    """True, or what scaled_mm cannot do with these arguments."""
    if not (a.numel() and b.numel()):
        return "takes no empty tensors"
    if transposed:
        b, b_scale = b.T, b_scale.T
    recipes = recipe(a, a_scale), recipe(b, b_scale)
    if recipes not in RECIPES:
        names = " and ".join(each.name if each else "squares by rows" for each in recipes)
        return f"has no recipe for scales of {names}"
    if not a.is_cuda:
        per_tensor = recipes[0] == ScalingType.TensorWise
        return per_tensor or f"takes one scale for each tensor on {a.device.type}"
    return _usable_on_gpu(a, b, recipes[0], bias, out_dtype)


def _usable_on_gpu(
    a: Tensor, b: Tensor, of_a: ScalingType, bias: Tensor | None, out_dtype: torch.dtype
) -> bool | str:
    (rows, depth), width = a.shape, b.shape[0]
    capability = torch.cuda.get_device_capability(a.device)
    by_block = of_a == ScalingType.BlockWise1x128
    version = tuple(map(int, (torch.version.cuda or "0.0").split(".")))
    conditions = {
        "takes NVIDIA GPUs from sm_89 on": torch.version.hip is None and capability >= (8, 9),
        "takes K and N in multiples of 16": depth % 16 == 0 and width % 16 == 0,
        "takes a and b with K contiguous": a.stride(1) == 1 and b.stride(1) == 1,
        "has no bias with float32 results": bias is None or out_dtype != torch.float32,
        "makes bfloat16 of scales by rows": (
            of_a != ScalingType.RowWise or out_dtype == torch.bfloat16
        ),
        "takes scales by blocks on sm_90 with CUDA 12.9 or newer": (
            not by_block or (capability == (9, 0) and version >= (12, 9))
        ),
        "takes scales by blocks for M and N in multiples of 4, K of 512, no bias, not float16": (
            not by_block
            or (
                rows % 4 == 0
                and width % 4 == 0
                and depth % (4 * BLOCK) == 0
                and bias is None
                and out_dtype != torch.float16
            )
        ),
    }
    return next((reason for reason, met in conditions.items() if not met), True)


@FP8_GEMM.implementation("scaled_mm", when=usable)
def fp8_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    if transposed:
        b, b_scale = b.T, b_scale.T
    of_a, of_b = recipe(a, a_scale), recipe(b, b_scale)
    assert of_a is not None  # usable has said so
    assert of_b is not None
    scales = _laid_out(a_scale, of_a), of_a, _laid_out(b_scale, of_b).T, of_b
    return scaled_mm(a, b.T, *scales, bias=bias, output_dtype=out_dtype)


def _laid_out(scale: Tensor, kind: ScalingType) -> Tensor:
    """As scaled_mm reads it: of rows' blocks, those of the same columns are contiguous."""
    return scale.T.contiguous().T if kind == ScalingType.BlockWise1x128 else scale.contiguous()
