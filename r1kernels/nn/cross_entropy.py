"""``LigerFusedLinearCrossEntropyLoss`` on ``linear_cross_entropy``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from r1kernels.core import check
from r1kernels.head.linear_cross_entropy import REDUCTIONS, linear_cross_entropy
from r1kernels.nn.logit_sums import predicted_tokens, target_logits, weighted_logit_sums

NAME = "FusedLinearCrossEntropy"


@dataclass
class CrossEntropyOutput:
    """What ``FusedLinearCrossEntropy`` returns when it is asked for more than the loss.

    loss alone has a gradient. What was not asked for is None.
    """

    loss: Tensor  # 0-d, or [T] for reduction="none"; z_loss and token_accuracy likewise
    z_loss: Tensor | None = None  # its part of the loss
    token_accuracy: Tensor | None = None  # whether the target has the largest logit; a mean
    predicted_tokens: Tensor | None = None  # [T] int64, −1 at ignored rows


class FusedLinearCrossEntropy(nn.Module):
    """Cross-entropy of a linear head, callable as ``LigerFusedLinearCrossEntropyLoss`` is.

    With z the logits of a row (softcap included), y its target, w ``ce_weight`` (or ones), ε
    ``label_smoothing`` and lse the log-sum-exp of z, the loss of the row is

        w_y·(1 − ε)·(lse − z_y) + ε/V·Σ_j w_j·(lse − z_j) + lse_square_scale·lse²,

    all of it times the probability of y, as a constant, with ``use_token_scaling``. "mean" divides
    the first two terms by the sum of w_y, and the last by the number of rows that count; both are 0
    where no row counts, as in Liger.

    No option makes the logits whole. ``ce_weight`` costs nothing, ``lse_square_scale`` and
    ``return_z_loss`` gather the heads of the targets, ``label_smoothing`` sums the head over the
    vocabulary once. Only ``return_token_accuracy`` and ``return_predicted_tokens``, and
    ``label_smoothing`` with ``softcap``, need one more pass over the head, a few rows at a time.

    Args:
        ce_weight: [V], floating point: the weight of each class.
        ignore_index, reduction, softcap: see ``linear_cross_entropy``.
        lse_square_scale: weight of the z-loss, lse² (PaLM).
        label_smoothing: ε, from 0 to 1.
        return_z_loss, return_token_accuracy, return_predicted_tokens: return a
            ``CrossEntropyOutput`` that has them.
        accum_dtype: None or torch.float32, in which everything is accumulated anyway.
        use_token_scaling: multiply the loss of each row by the probability of its target.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        NotImplementedError: for another ``accum_dtype``.
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
        check.choice(NAME, "reduction", reduction, REDUCTIONS)
        if ce_weight is not None:
            check.Shapes(NAME)("ce_weight", ce_weight, "V", check.FLOATS)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"{NAME}: label_smoothing: expected a number from 0 to 1, got {label_smoothing}"
            )
        if softcap is not None:
            check.positive(NAME, "softcap", softcap)
        if accum_dtype not in (None, torch.float32):
            raise NotImplementedError(
                f"{NAME}: accum_dtype: expected None or torch.float32, got {accum_dtype}"
            )
        self.ce_weight = ce_weight
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.accum_dtype = accum_dtype
        self.use_token_scaling = use_token_scaling
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Any:
        """The loss of ``_input`` [T, H] under ``lin_weight`` [V, H] for ``target`` [T].

        The head takes the dtype of ``_input``. Unlike Liger's, the gradients are right for every
        reduction and upstream gradient, and the loss and the z-loss are float32.

        Returns:
            The loss, 0-d or [T]; or a ``CrossEntropyOutput`` where more was asked for.
        """
        weight = lin_weight.to(_input.dtype)
        bias = None if bias is None else bias.to(_input.dtype)
        nll = linear_cross_entropy(
            _input, weight, target, bias=bias, ignore_index=self.ignore_index, reduction="none",
            softcap=self.softcap,
        )  # fmt: skip
        # From here on, the rows that count alone: the others may hold anything.
        counts = target != self.ignore_index
        hidden, labels, nll = _input[counts], target[counts].long(), nll[counts]
        classes = self._class_weights(weight)

        loss = nll if classes is None else classes[labels] * nll
        scale = torch.ones_like(nll)
        if self.label_smoothing or self.lse_square_scale or self.return_z_loss:
            lse = nll + target_logits(hidden, weight, labels, bias, self.softcap)
            if self.label_smoothing:
                loss = self._smoothed(loss, lse, hidden, weight, bias, classes)
        if self.reduction == "mean":
            loss = loss / (len(labels) if classes is None else classes[labels].sum())
            scale = scale / max(len(labels), 1)
        z_loss = torch.zeros_like(nll)
        if self.lse_square_scale:
            z_loss = self.lse_square_scale * lse.square() * scale
            loss = loss + z_loss
        if self.use_token_scaling:
            probability = (-nll.detach()).exp()
            loss, z_loss = loss * probability, z_loss * probability

        loss = self._reduced(loss, counts)
        if not (self.return_z_loss or self.return_token_accuracy or self.return_predicted_tokens):
            return loss
        output = CrossEntropyOutput(loss)
        if self.return_z_loss:
            output.z_loss = self._reduced(z_loss.detach(), counts)
        if self.return_token_accuracy or self.return_predicted_tokens:
            best = predicted_tokens(hidden, weight, bias, self.softcap)
            if self.return_token_accuracy:
                right = (best == labels).float()
                of = 1 if self.reduction == "none" else len(labels)
                output.token_accuracy = self._reduced(right, counts) / of
            if self.return_predicted_tokens:
                output.predicted_tokens = torch.full_like(target, -1, dtype=torch.int64)
                output.predicted_tokens[counts] = best
        return output

    def _class_weights(self, weight: Tensor) -> Tensor | None:
        if self.ce_weight is None:
            return None
        if len(self.ce_weight) != len(weight):
            raise ValueError(
                f"{NAME}: ce_weight: expected V = {len(weight)} weights, got {len(self.ce_weight)}"
            )
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return self.ce_weight.to(weight.device, dtype)

    def _smoothed(
        self,
        loss: Tensor,
        lse: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        classes: Tensor | None,
    ) -> Tensor:
        """(1 − ε)·loss + ε/V·Σ_j w_j·(lse − z_j)."""
        total = len(weight) if classes is None else classes.sum()
        away = lse * total - weighted_logit_sums(hidden, weight, bias, self.softcap, classes)
        return (1 - self.label_smoothing) * loss + self.label_smoothing / len(weight) * away

    def _reduced(self, values: Tensor, counts: Tensor) -> Tensor:
        """The sum of the rows that count, or all rows with zeros at the others."""
        if self.reduction != "none":
            return values.sum()
        return values.new_zeros(counts.shape).masked_scatter(counts, values)
