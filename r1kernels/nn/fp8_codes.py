"""The FP8 codes of a weight that is trained in 16 or 32 bits, made once for each of its values."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from r1kernels.fp8.format import BLOCK, E4M3, FP8Tensor
from r1kernels.fp8.quantize import fp8_quantize

_steps = 0  # of every optimizer of this process


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


# Fused optimizers write parameters without moving their version counter (PyTorch 2.13).
register_optimizer_step_post_hook(_count)


class QuantizedWeight:
    """``codes(weight)`` quantizes when the weight was written since the last call, or replaced.

    What wrote it is told by autograd's version counter, which ``load_state_dict`` and most writes
    in place move, and by the steps of optimizers, any of ``torch.optim`` in this process. After
    what goes past both, to ``weight.data`` or by the gathering of FSDP2, call ``forget``. Under
    ``torch.compile`` the weight is quantized in the graph, at every call.

    On a GPU, where a gradient is to go through the layer, the codes have those of the transposed
    weight too, one byte an element more: made as seldom, they are not transposed in each product.
    """

    def __init__(self, scale_format: str) -> None:
        self.scale_format = scale_format
        self.kept: FP8Tensor | None = None
        """The codes of the last call; after a write to the weight the next call makes others."""
        self._weight: Any = None
        self._state: tuple[Any, ...] = ()

    def __call__(self, weight: Tensor) -> FP8Tensor:
        # Tensors made in inference mode have no counter.
        if torch.compiler.is_compiling() or weight.is_inference():
            return self._quantize(weight)
        # Moves to a device or a dtype keep tensor and counter.
        state = (_steps, weight._version, weight.data_ptr(), weight.device, weight.dtype)
        differentiated = weight.is_cuda and weight.dim() == 2 and torch.is_grad_enabled()
        if self.kept is None or self._weight() is not weight or self._state != state:
            with torch.inference_mode(False):  # a rollout's codes may serve training
                codes = self._quantize(weight)
            if type(codes.data) is not Tensor:
                return codes  # of a fake tensor, nothing to be kept
            self.kept = codes
            self._weight, self._state = ref(weight), state
        if differentiated and self.kept.data_t is None:
            with torch.inference_mode(False):
                data_t = self.kept.data.view(torch.uint8).T.contiguous().view(E4M3)
                self.kept = self.kept._replace(data_t=data_t)
        return self.kept

    def forget(self) -> None:
        """Quantize at the next call, whatever the counter says."""
        self.kept, self._weight, self._state = None, None, ()

    def _quantize(self, weight: Tensor) -> FP8Tensor:
        return fp8_quantize(weight.detach(), block=(BLOCK, BLOCK), scale_format=self.scale_format)

    def __getstate__(self) -> str:
        return self.scale_format  # a copy of the module makes codes of its own weight

    def __setstate__(self, scale_format: str) -> None:
        QuantizedWeight.__init__(self, scale_format)
