"""Low-rank adapters by peft: a few weights that are trained in place of all (arXiv 2106.09685)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf import routers
from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError

ADAPTER = "default"
EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def add_lora(model: PreTrainedModel, config: ModelConfig, seed: int) -> None:
    """Puts adapters of rank `config.lora_rank` into `model`, whose own weights are frozen.

    The model stays what it was: their products begin at zero.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            f"model.lora_rank = {config.lora_rank}: needs the package peft: pip install peft"
        )
    from peft import LoraConfig
    from peft.tuners.lora import ParamWrapper

    options: dict[str, Any] = {
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(config.lora_target_modules) or linear_layers(model),
    }
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(LoraConfig(**options), ADAPTER)
        except ValueError as error:  # none of the modules is there
            names = ", ".join(config.lora_target_modules)
            raise ConfigError(f"model.lora_target_modules = {names}: {error}") from None
    model.train(training)
    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        names = ", ".join(config.lora_target_modules)
        raise ConfigError(
            f"model.lora_target_modules = {names}: peft puts adapters on stacked experts by these "
            "names, which are not supported; name other layers, such as those of the attention"
        )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers but the head.

    In a mixture of experts those of the MLPs are left out: by their names peft would take the
    stacked experts too, which `merged_weights` cannot merge.
    """
    named: Any = model.named_modules()
    head, experts = model.get_output_embeddings(), EXPERTS if routers(model) else ()
    return [
        name
        for name, module in named
        if isinstance(module, torch.nn.Linear) and module is not head
        if not name.endswith(experts)
    ]


def export(model: PreTrainedModel, folder: Path) -> None:
    """The whole model as a HuggingFace folder, adapters added in; alone they are in `adapter`.

    Where a tied head or embedding has an adapter, the two are no longer one: the folder has both,
    and says that they are not tied.
    """
    if not model._hf_peft_config_loaded:
        model.save_pretrained(folder)
        return
    _export_adapter(model, folder / "adapter")
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = model.config.tie_word_embeddings
    model.config.tie_word_embeddings = tied and not any(map(_adapted, ends))
    model._hf_peft_config_loaded = False  # or the adapter alone would be saved again
    try:
        model.save_pretrained(folder, state_dict=dict(merged_weights(model)))
    finally:
        model._hf_peft_config_loaded = True
        model.config.tie_word_embeddings = tied


def _export_adapter(model: PreTrainedModel, folder: Path) -> None:
    """In peft's format, as `model.save_pretrained` does, but never with the embeddings below.

    That leaves peft to find out whether they are needed: by a warning, or a look at the hub.
    """
    from peft import get_peft_model_state_dict

    model.peft_config[ADAPTER].save_pretrained(folder)
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    named = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _adapted(module: Any) -> bool:
    return hasattr(module, "get_delta_weight")


def _adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if _adapted(module)}


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters, whose weights are `merged_weights`."""
    found = copy.deepcopy(model)
    layers = _adapted_layers(found)
    if not layers:
        return found
    weights = dict(merged_weights(found))
    for name, module in layers.items():
        found.set_submodule(name, module.base_layer)
        # A parameter of its own: it may have been tied to one that has no adapter.
        module.base_layer.weight = torch.nn.Parameter(weights[f"{name}.weight"])
    found._hf_peft_config_loaded = False
    return found


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's `state_dict`, under the names it has without adapters, with these added in."""
    layers = _adapted_layers(model)
    for name, tensor in model.state_dict().items():
        layer, _, own = name.partition(".base_layer.")
        if own == "weight":
            delta = layers[layer].get_delta_weight(ADAPTER)
            yield f"{layer}.weight", (tensor.float() + delta.float()).to(tensor.dtype)
        elif own:
            yield f"{layer}.{own}", tensor
        elif name.partition(".lora_")[0] not in layers:
            yield name, tensor
