"""FP8 as DeepSeek-V3 uses it (arXiv 2412.19437, 3.3): e4m3 codes, and a scale for each block.

A value is code · scale. Codes are ``float8_e4m3fn``: ±448 at most, no infinities. A scale belongs
to one row (or column) of 128 elements in activations and gradients, to 128 × 128 in weights.

Two things are unlike the paper's appendix and the code around it. The scale has no floor at 1e-4:
gradients of a mean over many tokens are smaller than that, and would keep one or two bits. And
what is no number stays so, alone: NaN and infinities become the code NaN and are left out of the
scale, instead of taking their whole block with them, or of becoming 448.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.quotient import quotient

BLOCK = 128
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST_SCALE = 2.0**-126  # the reciprocals of all scales are finite
SCALE_FORMATS = ("float", "ue8m0")


class FP8Tensor(NamedTuple):
    """Codes and their scales; with ``both``, those of the transposed tensor too."""

    data: Tensor
    """[…, R, C] float8_e4m3fn."""
    scale: Tensor
    """[…, ⌈R/rows⌉, ⌈C/columns⌉] float32: what the codes of a block are multiplied with."""
    data_t: Tensor | None = None
    """[C, R'] float8_e4m3fn: the transposed input, R' = R rounded up to 128, the rest 0."""
    scale_t: Tensor | None = None
    """[C, R'/128] float32."""

    @property
    def constants(self) -> tuple[Tensor, Tensor]:
        """data and scale as a product reads them: no gradient goes that way."""
        data, scale = self.data, self.scale
        if data.requires_grad or scale.requires_grad:
            data, scale = data.detach(), scale.detach()
        return data, scale

    @property
    def transposed(self) -> FP8Tensor:
        """What ``data_t`` and ``scale_t`` are of, as the weight gradient takes it.

        Raises:
            ValueError: it was quantized without ``both``.
        """
        if self.data_t is None or self.scale_t is None:
            raise ValueError("FP8Tensor: transposed: expected one made with both=True")
        return FP8Tensor(self.data_t, self.scale_t)


def blocks(size: int, block: int = BLOCK) -> int:
    """How many blocks cover ``size`` elements. Written with what symbolic integers can do."""
    return (size + block - 1) // block


def new_row_scale(like: Tensor, rows: int, count: int) -> Tensor:
    """Empty scales [rows, count], of rows in ``count`` blocks.

    On a GPU those of a block lie beside each other, each block at a multiple of 16 bytes: a copy to
    shared memory takes a tile's at once.
    """
    if like.device.type != "cuda":
        return like.new_empty(rows, count, dtype=torch.float32)
    step = (rows + 3) // 4 * 4
    memory = like.new_empty(count * step, dtype=torch.float32)
    return memory.as_strided((rows, count), (1, step))


def scale_of(amax: Tensor, power_of_two: bool) -> Tensor:
    """amax/448, at least 2^-126; with ``power_of_two`` (ue8m0) rounded up to one, by its bits."""
    scale = quotient(amax, LARGEST).clamp(min=SMALLEST_SCALE)
    if power_of_two:
        bits = scale.float().view(torch.int32)
        scale = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32).to(scale.dtype)
    return scale


def encode(x: Tensor, scale: Tensor) -> Tensor:
    """Codes of x·(1/scale), both roundings to nearest even; beyond ±448 they saturate."""
    scaled = x * (1 / scale)
    return torch.where(x.isfinite(), scaled.clamp(-LARGEST, LARGEST), torch.nan).to(E4M3)


def magnitudes(x: Tensor) -> Tensor:
    """|x|, and 0 for what is no number: it has no part in a scale."""
    return torch.where(x.isfinite(), x.abs(), 0)


def quantize_blocks(
    x: Tensor, rows: int, columns: int, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    """(codes, scales) of [B, R, C] in blocks of rows × columns, the last ones maybe smaller."""
    wide = torch.nn.functional.pad(x, (0, -x.shape[2] % columns, 0, -x.shape[1] % rows))
    grid = wide.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # [B, r, rows, c, columns]
    scale = scale_of(magnitudes(grid).amax((2, 4)), power_of_two)
    codes = encode(grid, scale[:, :, None, :, None]).flatten(3, 4).flatten(1, 2)
    return codes[:, : x.shape[1], : x.shape[2]].contiguous(), scale


def spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    """[…, r, c] scales as [rows, columns] factors: one for all, one for 128, or one each."""
    for dim, size in ((-2, rows), (-1, columns)):
        count = scale.shape[dim]
        if count == 1:
            continue  # broadcasts
        if count != size:
            scale = scale.repeat_interleave(BLOCK, dim).narrow(dim, 0, size)
    return scale


def decode(data: Tensor, scale: Tensor) -> Tensor:
    """code · scale in the scale's dtype, exact but for one rounding."""
    return data.to(scale.dtype) * spread(scale, *data.shape[-2:])


def check_tensor(op: str, name: str, value: Any) -> None:
    """``value`` is an ``FP8Tensor`` of tensors.

    Raises:
        TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(value, FP8Tensor):
        raise TypeError(
            f"{op}: {name}: expected an FP8Tensor, got {check.described(value)} (fp8_quantize "
            "makes one, FP8Tensor(data, scale) one of codes and scales that are there)"
        )
    for field, part in (("data", value.data), ("scale", value.scale)):
        if not isinstance(part, Tensor):
            raise TypeError(f"{op}: {name}.{field}: expected a tensor, got {check.described(part)}")


def check_scale(
    op: str, name: str, scale: Tensor, shape: tuple[int, ...], reduced: int | None = -1
) -> None:
    """``scale`` can be that of a tensor of ``shape`` whose dimension ``reduced`` is summed over.

    None: now over the one and now over the other, as a weight in the two passes of a layer.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(scale, Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {check.described(scale)}")
    check.dense(op, name, scale)
    rows, columns = shape[-2:]
    row_counts, column_counts = {blocks(rows), 1}, {blocks(columns), 1}
    if reduced is not None:
        (column_counts if reduced == -2 else row_counts).add(columns if reduced == -2 else rows)
    fits = (
        scale.dim() == len(shape)
        and scale.shape[:-2] == shape[:-2]
        and scale.shape[-2] in row_counts
        and scale.shape[-1] in column_counts
    )
    if not fits:
        by_rows = (*shape[:-1], blocks(columns))
        hint = ""
        if reduced is None and scale.shape == by_rows:
            hint = " (that is by rows: block=(128, 128) of fp8_quantize is for weights)"
        lead = "".join(f"{size}, " for size in shape[:-2])
        known = " or ".join(
            f"[{lead}{r}, {c}]"
            for r in sorted(row_counts, reverse=True)
            for c in sorted(column_counts, reverse=True)
        )
        raise ValueError(
            f"{op}: {name}: expected a scale for blocks of a {list(shape)} tensor, of shape "
            f"{known}; got {list(scale.shape)}{hint}"
        )
    if scale.dtype != torch.float32:
        got = str(scale.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name}: expected dtype float32, got {got} (use .float())")
