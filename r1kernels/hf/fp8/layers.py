"""FP8 products in the layers of a HuggingFace model, from master weights or its own FP8 weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from r1kernels.fp8 import speed
from r1kernels.fp8.experts import fp8_experts
from r1kernels.fp8.format import BLOCK, E4M3, FP8Tensor
from r1kernels.fp8.linear import fp8_linear
from r1kernels.hf.bound import Bound
from r1kernels.hf.expert_layout import is_silu, is_swiglu
from r1kernels.hf.unwrap import unwrap
from r1kernels.moe.route import Routing
from r1kernels.nn.fp8_codes import QuantizedWeight

M = TypeVar("M")

# Small, and decisive: DeepSeek-V3 keeps them in high precision (arXiv 2412.19437, 3.3.1).
ROUTERS = ("gate", "router", "shared_expert_gate")
EXPERTS = ("gate_up_proj", "down_proj")


class Choice(NamedTuple):
    """What becomes of a layer."""

    name: str
    module: nn.Module
    fp8: bool
    reason: str


def patch_fp8(model: M, layers: bool | str | Sequence[str] = True) -> M:
    """Make linear layers and experts of ``model`` compute in FP8, in training too.

    A layer that has FP8 weights (see ``register_fp8``) multiplies with these, and its gradient is
    float32: ``r1kernels.nn.FP8Optimizer`` steps it. Any other keeps its weight as the master, from
    which codes are made after each optimizer step. Parameters and ``state_dict`` stay as they are.

    Args:
        model: a HuggingFace model, or peft's wrapper of one.
        layers: True for all of them, patterns of module names (``["model.layers.*.mlp.*"]``), or
            "auto" for those of which a record of this processor says that forward and backward
            together are faster in FP8 than in the dtype that the weight has now. The head,
            embeddings, routers, adapters and norms stay in high precision. Layers with FP8 weights
            are taken whatever this says, as nothing else can train them.

    Returns:
        ``model``. A second call with the same layers changes nothing.

    Raises:
        ValueError: the model is patched already with other layers, or ``layers`` names nothing.
        TypeError: it is no HuggingFace model, or is wrapped; says what to do.
    """
    causal = unwrap("patch_fp8", model)
    choices = list(choose(causal, layers))
    if not isinstance(layers, (bool, str)) and not any(choice.fp8 for choice in choices):
        raise ValueError(f"patch_fp8: layers: expected patterns of names of layers, got {layers}")
    chosen = [
        f"{choice.name}: {'fp8' if choice.fp8 else 'left'}, {choice.reason}" for choice in choices
    ]
    if "_r1kernels_fp8" in vars(causal):
        if chosen != causal._r1kernels_fp8:
            raise ValueError(
                f"patch_fp8: {type(causal).__name__}: expected an unpatched model, or the layers "
                f"that it is patched with; call unpatch_fp8(model) first"
            )
        return model
    causal._r1kernels_fp8 = chosen
    for choice in choices:
        if choice.fp8:
            _enter(choice.module)
    return model


def unpatch_fp8(model: M) -> M:
    """Undo ``patch_fp8`` and return ``model``.

    Raises:
        ValueError: the model is not patched.
    """
    causal = unwrap("unpatch_fp8", model)
    if "_r1kernels_fp8" not in vars(causal):
        raise ValueError(f"unpatch_fp8: {type(causal).__name__}: expected a patched model")
    del causal._r1kernels_fp8
    for module in causal.modules():
        if vars(module).pop("_r1kernels_codes", None) is not None and isinstance(module, nn.Linear):
            del module.forward
    return model


def computes_in_fp8(model: nn.Module) -> bool:
    """Whether any layer was patched to."""
    return any("_r1kernels_codes" in vars(module) for module in model.modules())


def explain_fp8(model: Any) -> str:
    """One line for each layer of a patched model: in FP8 or left, and why, with what was measured.

    Raises:
        ValueError: the model is not patched.
    """
    model = unwrap("explain_fp8", model)
    if "_r1kernels_fp8" not in vars(model):
        raise ValueError(f"explain_fp8: {type(model).__name__}: expected a patched model")
    return "\n".join(model._r1kernels_fp8)


def choose(model: Any, layers: bool | str | Sequence[str]) -> Iterator[Choice]:
    """What ``patch_fp8`` would do with each linear layer and experts module."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        experts = hasattr(module, "_is_expert_parallel")
        if not experts and not isinstance(module, nn.Linear):
            continue
        stored = any(parameter.dtype == E4M3 for parameter in module.parameters(recurse=False))
        reason = _unlike(module, experts, stored)
        if reason is None and not stored:
            reason = _unwanted(name, module, head)
        if reason is not None:
            yield Choice(name, module, False, reason)
        elif stored:
            yield Choice(name, module, True, "with the weights of its checkpoint")
        else:
            wanted, reason = _wanted(name, module, experts, layers)
            taken = f"with its weight as the master{reason and f'; {reason}'}"
            yield Choice(name, module, wanted, taken if wanted else reason)


def _unlike(module: Any, experts: bool, stored: bool) -> str | None:
    """Why no FP8 product of ours can do what the module does."""
    name = type(module).__name__
    if not experts and type(module) is not nn.Linear and name != "FP8Linear":
        return f"a {name} does something else"
    if experts and not fp8_swiglu_experts(module):
        return f"the experts of {name} are no SwiGLU without bias"
    if not stored:
        return None
    block = module.block_size
    if block is None or tuple(block) != (BLOCK, BLOCK) or module.activation_scheme != "dynamic":
        return (
            f"blocks are {block} and activations {module.activation_scheme}, not 128 × 128, dynamic"
        )
    for weight in EXPERTS if experts else ("weight",):
        shape, scale = getattr(module, weight).shape, getattr(module, f"{weight}_scale_inv").shape
        if scale[-2:] != (-(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK)):
            return f"the scales {list(scale)} of {list(shape)} are not of blocks of 128 × 128"
    return None


def fp8_swiglu_experts(module: Any) -> bool:
    """silu(gate)·up between the products, no bias, weights as ``nn.Linear`` has them."""
    if getattr(module, "has_bias", False) or getattr(module, "is_transposed", False):
        return False
    if hasattr(module, "activation_scheme"):  # transformers' FP8Experts and its own gate
        plain = module.swiglu_alpha is None and module.limit is None
        return module.has_gate and plain and is_silu(module)
    return is_swiglu(module) and not getattr(module, "has_post_expert_norm", False)


def _unwanted(name: str, module: nn.Module, head: nn.Module | None) -> str | None:
    """Why a layer that could run in FP8 stays as it is, whoever asks for it."""
    if module is head:
        return "the head stays in high precision"
    if name.rpartition(".")[2] in ROUTERS:
        return "a router stays in high precision"
    return "an adapter stays in high precision" if "lora_" in name else None


def _wanted(
    name: str, module: nn.Module, experts: bool, layers: bool | str | Sequence[str]
) -> speed.Verdict:
    """Whether a layer is asked for, and what was measured where that decides."""
    if layers == "auto":
        if experts:
            return speed.Verdict(False, "no record of the speed of experts in FP8")
        return speed.of(next(module.parameters(recurse=False)))
    named = not isinstance(layers, bool) and any(fnmatch(name, each) for each in layers)
    wanted = layers is True or named
    return speed.Verdict(wanted, "" if wanted else "not chosen")


def _enter(module: Any) -> None:
    linear = isinstance(module, nn.Linear)
    module._r1kernels_codes = {weight: _codes(module, weight) for weight in
                               (("weight",) if linear else EXPERTS)}  # fmt: skip
    if linear:
        module.forward = Bound(_linear_forward, module)


def _codes(module: Any, name: str) -> QuantizedWeight | StoredQuantizedWeight:
    weight = getattr(module, name)
    if weight.dtype != E4M3:
        return QuantizedWeight("float")
    scale = getattr(module, f"{name}_scale_inv")
    scale.requires_grad_(False)
    weight.requires_grad_(True)
    weight.grad_dtype = torch.float32
    return StoredQuantizedWeight(scale.dtype == torch.float32)


class StoredQuantizedWeight:
    """The codes of an FP8 weight are the weight; a checkpoint may have its scales as exponents."""

    def __init__(self, floats: bool) -> None:
        self.scale_format = "float" if floats else "ue8m0"

    def __call__(self, weight: Tensor, scale: Tensor) -> FP8Tensor:
        if not torch.compiler.is_compiling() and weight.grad_dtype != torch.float32:
            weight.grad_dtype = torch.float32  # copies and pickles of a parameter lose it
        return FP8Tensor(weight.detach(), scale.detach().float())


def _quantized(module: Any, name: str) -> FP8Tensor:
    codes, weight = module._r1kernels_codes[name], getattr(module, name)
    if isinstance(codes, StoredQuantizedWeight):
        return codes(weight, getattr(module, f"{name}_scale_inv"))
    found: FP8Tensor = codes(weight)
    return found


def fp8_codes(model: nn.Module) -> list[Tensor]:
    """The codes and scales that are kept beside the weights of a model that ``patch_fp8`` patched.

    Others take their place when a weight changes: what holds on to them, such as a captured graph,
    is then stale.
    """
    every = [vars(module).get("_r1kernels_codes", {}) for module in model.modules()]
    kept = [
        codes.kept
        for each in every
        for codes in each.values()
        if isinstance(codes, QuantizedWeight)
    ]
    return [tensor for codes in kept if codes for tensor in codes if isinstance(tensor, Tensor)]


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    scale_format = self._r1kernels_codes["weight"].scale_format
    quantized = _quantized(self, "weight")
    return fp8_linear(input, self.weight, quantized, self.bias, scale_format=scale_format)


def fp8_experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The forward of a patched experts module; see ``experts_forward``.

    Raises:
        ValueError: the module is not patched.
    """
    if "_r1kernels_codes" not in vars(self):
        raise ValueError(f"{type(self).__name__}: experts 'r1': expected patch_fp8(model) first")
    routing = Routing.of(top_k_weights.float(), top_k_index, self.num_experts, align=BLOCK)
    gate_up, down = (_quantized(self, name) for name in EXPERTS)
    return fp8_experts(
        hidden_states,
        self.gate_up_proj,
        self.down_proj,
        gate_up,
        down,
        routing,
        scale_format=self._r1kernels_codes[EXPERTS[0]].scale_format,
    )
