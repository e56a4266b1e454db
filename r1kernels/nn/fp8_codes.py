"""The FP8 codes of a weight that is trained in 16 or 32 bits, made once for each of its values."""

from __future__ import annotations

import torch
from torch import Tensor

from r1kernels.ops.fp8_format import BLOCK, FP8Tensor
from r1kernels.ops.fp8_quantize import fp8_quantize


class Codes:
    """``codes(weight)`` quantizes when the weight was written since the last call, or replaced.

    What wrote it is told by autograd's version counter, which optimizers and ``load_state_dict``
    move; a write through ``weight.data`` is not seen. Under ``torch.compile`` the weight is
    quantized in the graph, at every call.
    """

    def __init__(self, scale_format: str) -> None:
        self.scale_format = scale_format
        self._made_of: tuple[object, ...] | None = None
        self._codes: FP8Tensor | None = None

    def __call__(self, weight: Tensor) -> FP8Tensor:
        if torch.compiler.is_compiling():
            return self._quantize(weight)
        # Moves to a device or a dtype keep the counter.
        made_of = (weight._version, weight.data_ptr(), weight.device, weight.dtype)
        if self._codes is None or made_of != self._made_of:
            self._codes, self._made_of = self._quantize(weight), made_of
        return self._codes

    def _quantize(self, weight: Tensor) -> FP8Tensor:
        return fp8_quantize(weight.detach(), block=(BLOCK, BLOCK), scale_format=self.scale_format)
