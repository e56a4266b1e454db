"""A head whose logits are float32 in a model of 16 bits, as ScaleRL and MiniMax-M1 train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Head(nn.Linear):
    """``nn.Linear`` that multiplies in float32 whatever it is given, under autocast too."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., H], any float type → [..., V] float32."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), bias)

    @staticmethod
    def become(head: nn.Linear) -> None:
        """Make ``head`` one, whose own forward, if it has one, goes."""
        vars(head).pop("forward", None)
        head.__class__ = Float32Head
