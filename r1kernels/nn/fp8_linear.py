"""``nn.Linear`` with FP8 products, trained on a master weight in 16 or 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r1kernels.core import check
from r1kernels.fp8.format import SCALE_FORMATS
from r1kernels.fp8.linear import fp8_linear
from r1kernels.nn.fp8_codes import QuantizedWeight


class FP8Linear(nn.Linear):
    """``nn.Linear`` whose three products run in FP8 (see ``fp8_linear``).

    The parameters, their names and their checkpoints are those of ``nn.Linear``: any optimizer
    trains the master weight [N, K], whose codes (one byte an element more) are made again after it
    was written, and not otherwise.

    Args:
        in_features, out_features, bias, device, dtype: as of ``nn.Linear``.
        scale_format: "float" or "ue8m0", of the weight, the input and the gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale_format: str = "float",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check.choice("FP8Linear", "scale_format", scale_format, SCALE_FORMATS)
        self.codes = QuantizedWeight(scale_format)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, scale_format: str = "float") -> FP8Linear:
        """A layer with the very parameters of ``linear``."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            scale_format=scale_format,
        )
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] → [..., N] in the dtype of ``input``, or that of autocast."""
        codes = self.codes(self.weight)
        scale_format = self.codes.scale_format
        return fp8_linear(input, self.weight, codes, self.bias, scale_format=scale_format)

    def extra_repr(self) -> str:
        """What ``repr`` shows in brackets."""
        return f"{super().extra_repr()}, scale_format={self.codes.scale_format}"
