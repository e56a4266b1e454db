"""A reward model: the backbone of a causal language model, and one number for a sequence."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from r1train.config.schema import ConfigError


def with_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """HuggingFace's sequence classification model with one logit, `score`, on the same backbone.

    The backbone's weights are shared, not copied: training one trains the other. `score` is drawn
    from `seed` as HuggingFace draws it. Raises ConfigError where the architecture has no such
    model, or the model has adapters.
    """
    if model._hf_peft_config_loaded:
        raise ConfigError("model.lora_rank: a reward model has no adapters: set lora_rank = 0")
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    name = type(model).__name__
    if kind is None:
        raise ConfigError(f"reward_model: HuggingFace has no sequence classification for {name}")
    with torch.device("meta"):
        classifier: Any = kind(config)
    score, prefix = getattr(classifier, "score", None), kind.base_model_prefix
    if not isinstance(score, torch.nn.Linear) or prefix != model.base_model_prefix:
        raise ConfigError(
            f"reward_model: {kind.__name__} reads its score in another way than a linear layer "
            f"`score` on {name}'s backbone: start from a Llama, Qwen or DeepSeek model"
        )
    setattr(classifier, prefix, model.base_model)
    weight = torch.empty(score.weight.shape, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed % 2**63)
    weight.normal_(0.0, config.get_text_config().initializer_range, generator=generator)
    classifier.score.weight = torch.nn.Parameter(weight.to(model.device, model.dtype))
    found: PreTrainedModel = classifier.eval()
    return found
