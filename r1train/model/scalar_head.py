"""One number for each token, in the place of the head: classification models with one label."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from r1train.config.schema import ConfigError


def with_scalar_head(
    model: PreTrainedModel, auto: Any = AutoModelForTokenClassification
) -> PreTrainedModel:
    """The classification model of `auto` with one label on the backbone of a causal LM.

    It shares the backbone's modules, so that training one trains both. Its head `score` is float32
    and begins at zero: every number is 0 at first. Raises ConfigError where transformers has no
    such model, and of a model with adapters.
    """
    if model._hf_peft_config_loaded:
        raise ConfigError("model.lora_rank: a model with a scalar head is trained whole: give 0")
    config = copy.deepcopy(model.config)
    config.num_labels, config.classifier_dropout = 1, 0.0
    try:
        with torch.device("meta"):
            found: PreTrainedModel = auto.from_config(config)
    except ValueError:
        found = model
    if not isinstance(getattr(found, "score", None), nn.Linear):
        raise ConfigError(
            f"{type(model).__name__}: transformers has no {auto.__name__.removeprefix('Auto')} of "
            "this architecture with a linear layer `score`, so that no scalar can be put on it: "
            "choose another model"
        )
    setattr(found, found.base_model_prefix, model.base_model)
    bias = getattr(found.score, "bias", None) is not None
    found.score = nn.Linear(
        config.get_text_config().hidden_size, 1, bias=bias, device=model.device
    ).requires_grad_()
    nn.init.zeros_(found.score.weight)
    if bias:
        nn.init.zeros_(found.score.bias)
    return found.eval()


def causal_shell(model: PreTrainedModel) -> PreTrainedModel:
    """A causal LM around the backbone of a classification model, for what takes only such.

    Its head is the embedding, which takes no memory and says nothing.
    """
    with torch.device("meta"):
        found: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)
    setattr(found, found.base_model_prefix, model.base_model)
    head: Any = found.get_output_embeddings()
    head.weight = model.get_input_embeddings().weight
    return found


def score_of(model: PreTrainedModel) -> nn.Linear:
    """The head of a model that `with_scalar_head` made, or of one that was saved and loaded."""
    score = model.score
    assert isinstance(score, nn.Linear)
    return score


def scalars(score: nn.Linear, hidden: Tensor) -> Tensor:
    """float32 [T] of hidden states [T, H]."""
    bias = None if score.bias is None else score.bias.float()
    return nn.functional.linear(hidden.float(), score.weight.float(), bias)[:, 0]
