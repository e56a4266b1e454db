"""Mixture-of-experts models of HuggingFace through r1kernels' ops: routers and experts."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from r1kernels.hf.expert_layout import is_swiglu
from r1kernels.hf.experts.routers import patch_routers, unpatch_routers
from r1kernels.hf.fp8.layers import fp8_experts_forward
from r1kernels.hf.unwrap import unwrap
from r1kernels.moe.combine import accumulate_dtype
from r1kernels.moe.experts import moe_experts
from r1kernels.moe.route import Routing

NAME = "r1"
M = TypeVar("M")


class PatchedMoE:
    """What a patched model ran its experts with before; None: they were left as they are."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.before is not None:
            register_experts()  # in the process that has loaded the model


def register_experts() -> None:
    """Make transformers know ``experts_implementation="r1"``.

    ``patch`` and ``patch_moe`` do so; call it before a ``from_pretrained`` that asks for it.
    """
    from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)
    FP8ExpertsInterface.register(NAME, fp8_experts_forward)


def experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The forward of a HuggingFace experts module, through ``moe_experts``.

    Args:
        self: the module, as ``use_experts_implementation`` describes it.
        hidden_states: [T, H]. Cast to the weights' dtype, as HuggingFace does.
        top_k_index: [T, k]; ids of ``num_experts`` and above are another rank's experts and
            contribute nothing, in both passes.
        top_k_weights: [T, k], any float type.

    Returns:
        [T, H], dtype of ``hidden_states``.
    """
    if "_r1kernels_codes" in vars(self):
        return fp8_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    name = "gate_up_proj" if self.has_gate else "up_proj"
    first = getattr(self, name)
    x = hidden_states.to(first.dtype)
    options: dict[str, Any] = {}
    if self.has_bias:
        options["gate_up_bias"] = getattr(self, f"{name}_bias")
        options["down_bias"] = self.down_proj_bias
    if not is_swiglu(self):
        options["activation"] = self._apply_gate if self.has_gate else self.act_fn
    weights = top_k_weights.to(accumulate_dtype(x))
    routing = Routing.of(weights, top_k_index, self.num_experts)
    with torch.autocast(x.device.type, enabled=False):  # would cast the products inside of ops
        y = moe_experts(x, first, self.down_proj, routing, transposed=self.is_transposed, **options)
    return y.to(hidden_states.dtype)


def patch_moe(model: M) -> M:
    """Make a model's routers go through ``moe_route`` and its experts through ``moe_experts``.

    Same outputs, ``router_logits`` included, same parameters, same ``state_dict``; the routers'
    ``e_score_correction_bias`` becomes, and stays, float32 whatever the model is cast to. Routers
    that do something else are left as they are, with a warning, and so are FP8 experts. Options
    such as ``top_k`` are read now. Does nothing to a model without a mixture of experts.

    Args:
        model: a HuggingFace model, or peft's wrapper of one.

    Returns:
        ``model``. A second call changes nothing.

    Raises:
        TypeError: it is no HuggingFace model, or is wrapped; says what to do.
    """
    causal = unwrap("patch_moe", model)
    if "_r1kernels_moe" in vars(causal):
        return model
    before = None
    experts = [module for module in causal.modules() if hasattr(module, "_is_expert_parallel")]
    reasons = {_unlike_plain_experts(module) for module in experts} - {None}
    for reason in reasons:
        name = type(causal).__name__
        warnings.warn(f"patch_moe: {name}: experts left as they are, {reason}", stacklevel=2)
    if experts and not reasons:
        register_experts()
        before = causal.get_experts_implementation()
        causal.set_experts_implementation(NAME)
    causal._r1kernels_moe = PatchedMoE(before)
    patch_routers(causal)
    return model


def unpatch_moe(model: M) -> M:
    """Undo ``patch_moe`` and return ``model``; a bias that became float32 stays so.

    Raises:
        ValueError: the model is not patched.
    """
    causal = unwrap("unpatch_moe", model)
    if "_r1kernels_moe" not in vars(causal):
        raise ValueError(f"unpatch_moe: {type(causal).__name__}: expected a patched model")
    before = causal._r1kernels_moe.before
    if before is not None:
        causal.set_experts_implementation(before)
    del causal._r1kernels_moe
    unpatch_routers(causal)
    return model


def _unlike_plain_experts(experts: nn.Module) -> str | None:
    """Why ``experts_forward`` cannot stand in for the forward of an experts module."""
    name = type(experts).__name__
    if name.startswith("FP8") and "_r1kernels_codes" not in vars(experts):
        return f"since {name} is not patched (fp8=True)"
    if getattr(experts, "has_post_expert_norm", False):
        return f"since {name} has a norm after its experts"
    return None
