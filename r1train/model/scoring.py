"""Models that say one number: the backbone of a causal language model, and a head of one row.

A reward model says it of a sequence (HuggingFace's sequence classification), a process reward model
of every token (token classification).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from r1train.config.schema import ConfigError

HEADS: dict[str, Any] = {
    "sequence": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}


def with_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    of: Literal["sequence", "token"] = "sequence",
) -> PreTrainedModel:
    """HuggingFace's classification model `of` sequences or tokens with one logit, `score`, on the
    same backbone.

    The backbone's weights are shared, not copied: training one trains the other. `score` is drawn
    from `seed` as HuggingFace draws it, and its bias, which that of tokens has, is 0. Raises
    ConfigError where the architecture has no such model, or the model has adapters.
    """
    if model._hf_peft_config_loaded:
        raise ConfigError("model.lora_rank: a reward model has no adapters: set lora_rank = 0")
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    config.classifier_dropout = 0.0
    kind: Any = HEADS[of].get(type(config), None)
    name = type(model).__name__
    if kind is None:
        raise ConfigError(f"a reward model: HuggingFace has no {of} classification for {name}")
    with torch.device("meta"):
        classifier: Any = kind(config)
    score, prefix = getattr(classifier, "score", None), kind.base_model_prefix
    if not isinstance(score, torch.nn.Linear) or prefix != model.base_model_prefix:
        raise ConfigError(
            f"a reward model: {kind.__name__} reads its score in another way than a linear layer "
            f"`score` on {name}'s backbone: start from a Llama, Qwen or DeepSeek model"
        )
    setattr(classifier, prefix, model.base_model)
    weight = torch.empty(score.weight.shape, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed % 2**63)
    weight.normal_(0.0, config.get_text_config().initializer_range, generator=generator)
    score.weight = torch.nn.Parameter(weight.to(model.device, model.dtype))
    if score.bias is not None:
        score.bias = torch.nn.Parameter(score.weight.new_zeros(1))
    found: PreTrainedModel = classifier.eval()
    return found


def causal_shell(classifier: PreTrainedModel) -> PreTrainedModel:
    """A causal LM around the backbone of a classification model, for what takes only such.

    Its head is the embedding, which takes no memory and says nothing.
    """
    with torch.device("meta"):
        found: PreTrainedModel = AutoModelForCausalLM.from_config(classifier.config)
    setattr(found, found.base_model_prefix, classifier.base_model)
    head: Any = found.get_output_embeddings()
    head.weight = classifier.get_input_embeddings().weight
    return found


def scores(classifier: PreTrainedModel, hidden: Tensor) -> Tensor:
    """float32 [T]: the score of hidden states [T, H]."""
    score: Any = classifier.score
    found: Tensor = score(hidden).float()
    return found[:, 0]
