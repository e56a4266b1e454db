"""The experts of a layer with FP8 products, trained on master weights in 16 or 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r1kernels.core import check
from r1kernels.fp8.experts import fp8_experts
from r1kernels.fp8.format import SCALE_FORMATS
from r1kernels.moe.route import Routing
from r1kernels.nn.fp8_codes import QuantizedWeight


class FP8Experts(nn.Module):
    """SwiGLU experts (see ``fp8_experts``) whose parameters bear the names of HuggingFace's.

    Codes are made again after a master weight was written, as in ``FP8Linear``.

    Args:
        num_experts, hidden_size, intermediate_size: E, H and I of ``gate_up_proj`` [E, 2I, H] and
            ``down_proj`` [E, H, I].
        device, dtype: of the master weights.
        scale_format: "float" or "ue8m0", of weights, activations and gradients.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale_format: str = "float",
    ) -> None:
        super().__init__()
        check.choice("FP8Experts", "scale_format", scale_format, SCALE_FORMATS)
        gate_up = (num_experts, 2 * intermediate_size, hidden_size)
        down = (num_experts, hidden_size, intermediate_size)
        self.gate_up_proj = nn.Parameter(torch.empty(gate_up, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(down, device=device, dtype=dtype))
        self.gate_up_codes = QuantizedWeight(scale_format)
        self.down_codes = QuantizedWeight(scale_format)
        self.scale_format = scale_format
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√(inputs of the product), as in ``nn.Linear``."""
        for weight in (self.gate_up_proj, self.down_proj):
            bound = weight.shape[2] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """[T, H] → [T, H]; ``routing`` best of ``moe_route(..., align=128)``."""
        return fp8_experts(
            x,
            self.gate_up_proj,
            self.down_proj,
            self.gate_up_codes(self.gate_up_proj),
            self.down_codes(self.down_proj),
            routing,
            scale_format=self.scale_format,
        )

    def extra_repr(self) -> str:
        """What ``repr`` shows in brackets."""
        experts, width, inner = self.down_proj.shape
        return (
            f"num_experts={experts}, hidden_size={width}, intermediate_size={inner}, "
            f"scale_format={self.scale_format}"
        )
