"""The policy loss of completions under a patched model, for a training loop of one's own."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.head.fused_linear_loss import FusedLoss
from r1kernels.hf.head.head import Head
from r1kernels.hf.patched import run_with_hidden
from r1kernels.policy.fused_linear_grpo_loss import fused_linear_grpo_loss
from r1kernels.policy.policy_loss_options import FusedLossOptions

NAME = "grpo_loss"


def grpo_loss(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    inputs: dict[str, Any] | None = None,
    router_aux_loss_coef: float = 0.0,
    **options: Unpack[FusedLossOptions],
) -> FusedLoss:
    """``fused_linear_grpo_loss`` of the last C of S tokens, from the model's own hidden states.

    Only tokens under ``completion_mask`` go through the head.

    Args:
        model: patched by ``hf.patch``, possibly wrapped since.
        input_ids: [B, S], prompts and then completions.
        attention_mask: [B, S], 0 at padding.
        completion_mask: [B, C], 1 (or True) where one of the last C tokens counts, else 0.
        inputs: further arguments of the model.
        router_aux_loss_coef: weight of the load-balancing loss of a mixture of experts, which is
            that of the model's class, over all S tokens that are no padding; 0 leaves it out.
        options: the keywords of ``fused_linear_grpo_loss`` that neither the model nor the mask
            gives (``FusedLossOptions`` lists them); what is [T] there is [B, C] here.

    Returns:
        ``FusedLoss`` whose logprob and entropy are [B, C]; with ``router_aux_loss_coef`` its
        metrics have "aux_loss", before the weight.
    """
    shapes = check.Shapes(NAME)
    shapes("input_ids", input_ids, "B S", check.INTS)
    shapes("completion_mask", completion_mask, "B C", (*check.FLOATS, *check.INTS, torch.bool))
    sequences, length = shape = completion_mask.shape
    if not length < input_ids.shape[1]:
        raise ValueError(
            f"{NAME}: completion_mask: expected C < S = {input_ids.shape[1]}, since a token "
            f"needs one before it; got {list(shape)}"
        )
    packed: dict[str, Any] = {
        name: value.flatten() if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in options.items()
    }

    def loss(hidden: Tensor, head: Head) -> FusedLoss:
        return fused_linear_grpo_loss(
            head.rows(hidden[:, -length - 1 : -1]).flatten(0, 1),
            head.weight,
            input_ids[:, -length:].flatten(),
            cu_seqlens=torch.arange(sequences + 1, device=hidden.device) * length,
            mask=completion_mask.bool().flatten(),
            **head.options,
            **packed,
        )

    given = {**(inputs or {}), **router_inputs(router_aux_loss_coef)}
    output = run_with_hidden(
        model, loss, input_ids=input_ids, attention_mask=attention_mask, **given
    )
    found: FusedLoss = output["through_head"]
    if router_aux_loss_coef:
        aux_loss = router_aux_loss(NAME, model, output)
        found = found._replace(
            loss=found.loss + router_aux_loss_coef * aux_loss,
            metrics=found.metrics | {"aux_loss": aux_loss.detach()},
        )
    entropy = None if found.entropy is None else found.entropy.view(shape)
    return found._replace(logprob=found.logprob.view(shape), entropy=entropy)


def router_inputs(wanted: float | bool) -> dict[str, Any]:
    """What makes a mixture of experts compute its load-balancing loss."""
    return {"output_router_logits": True} if wanted else {}


def router_aux_loss(op: str, model: Any, output: Any) -> Tensor:
    """The load-balancing loss of a forward pass.

    Raises:
        ValueError: the model has none.
    """
    aux_loss: Tensor | None = output.get("aux_loss")
    if aux_loss is None:
        raise ValueError(
            f"{op}: router_aux_loss_coef: expected 0, since the forward of "
            f"{type(model).__name__} computes no load-balancing loss"
        )
    return aux_loss
