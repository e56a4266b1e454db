"""Tiny mixture-of-experts models of transformers, with routers that tokens tell apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

V, S = 67, 9
LAYERS, EXPERTS, TOP_K = 2, 8, 3

SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,
    "num_experts_per_tok": TOP_K,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 2,
}
ROUTED = {"n_routed_experts": EXPERTS, "moe_intermediate_size": 16, "first_k_dense_replace": 0}
GROUPS = {"n_group": 4, "topk_group": 2}
QWEN = {"num_experts": EXPERTS, "moe_intermediate_size": 16, "norm_topk_prob": True}
# What is special about each family's routers and experts is in the comment.
FAMILIES: dict[str, dict[str, Any]] = {
    "DeepseekV3": LATENT | ROUTED | GROUPS,  # sigmoid, bias, groups, scale, float32 logits
    "Qwen3Moe": QWEN,  # softmax, normalised
    "Mixtral": {"num_local_experts": EXPERTS},  # float32 weights
    "GptOss": {"num_local_experts": EXPERTS},  # softmax of the chosen, biases, its own gate
    "DeepseekV2": LATENT | ROUTED | GROUPS | {"topk_method": "group_limited_greedy"},
    "Glm4Moe": ROUTED | {"n_group": 1, "topk_group": 1},
    "Olmoe": {"num_experts": EXPERTS, "num_key_value_heads": 2, "head_dim": 16},  # not normalised
    "Qwen2Moe": QWEN | {"shared_expert_intermediate_size": 16},
    "GraniteMoe": {"num_local_experts": EXPERTS},  # (ids, weights, logits)
    "MiniMax": {"num_local_experts": EXPERTS},
}
MAIN = ("DeepseekV3", "Qwen3Moe", "Mixtral", "GptOss")


def tiny(family: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family] | changes)
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            if name.endswith(("e_score_correction_bias", "proj_bias")):
                tensor.normal_(0, 0.1)
    return model


def tokens(rows: int = 2, length: int = S) -> Tensor:
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(1))


def loss_of(model: Any, ids: Tensor) -> Tensor:
    logits = model(ids).logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(logits, ids[:, 1:].flatten())


def experts_of(model: Any) -> Any:
    """The experts module of its first layer."""
    return next(m for m in model.modules() if hasattr(m, "_is_expert_parallel"))
