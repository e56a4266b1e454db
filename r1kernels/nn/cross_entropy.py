"""``LigerFusedLinearCrossEntropyLoss`` on ``linear_cross_entropy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from r1kernels.ops.linear_cross_entropy import linear_cross_entropy


class FusedLinearCrossEntropy(nn.Module):
    """Cross-entropy of a linear head, callable as ``LigerFusedLinearCrossEntropyLoss`` is.

    Args:
        ignore_index, reduction, softcap: see ``linear_cross_entropy``.
        accum_dtype: None or torch.float32, in which everything is accumulated anyway.
        ce_weight, lse_square_scale, label_smoothing, return_z_loss, use_token_scaling,
        return_token_accuracy, return_predicted_tokens: refused unless left at their defaults.

    Raises:
        NotImplementedError: naming the argument that has another value than it may have here.
    """

    def __init__(
        self,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> None:
        super().__init__()
        _refuse_others(
            ce_weight=(ce_weight, None),
            lse_square_scale=(lse_square_scale, 0.0),
            label_smoothing=(label_smoothing, 0.0),
            return_z_loss=(return_z_loss, False),
            accum_dtype=(accum_dtype, None, torch.float32),
            use_token_scaling=(use_token_scaling, False),
            return_token_accuracy=(return_token_accuracy, False),
            return_predicted_tokens=(return_predicted_tokens, False),
        )
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.softcap = softcap

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The loss of ``_input`` [T, H] under ``lin_weight`` [V, H] for ``target`` [T]: 0-d or [T].

        The head takes the dtype of ``_input``. Unlike Liger's, the gradients are right for every
        reduction and upstream gradient, and the loss is float32.
        """
        return linear_cross_entropy(
            _input,
            lin_weight.to(_input.dtype),
            target,
            bias=None if bias is None else bias.to(_input.dtype),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            softcap=self.softcap,
        )


def _refuse_others(**arguments: tuple[Any, ...]) -> None:
    """Each argument comes as (value, accepted, …)."""
    for name, (value, *accepted) in arguments.items():
        if isinstance(value, Tensor) or value not in accepted:
            expected = " or ".join(map(str, accepted))
            got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else value
            raise NotImplementedError(
                f"FusedLinearCrossEntropy: {name}: expected {expected}, got {got}"
            )
