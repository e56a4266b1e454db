"""A tiny DeepSeek-V3 in DeepSeek's own format on disk, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from tests.fp8_measures import squares

VOCABULARY = 96
KEPT = ("embed", "lm_head", "norm", "mlp.gate.")  # in high precision, by parts of their names


def config(vocabulary: int = VOCABULARY) -> DeepseekV3Config:
    """Latent attention and experts whose widths are no multiples of 128, and some that are.

    An expert has two blocks each way: transformers saves the scales of a single one as a scalar,
    which it cannot load.
    """
    return DeepseekV3Config(
        vocab_size=vocabulary, hidden_size=256, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=320, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=64,
        kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1,
        moe_intermediate_size=256, max_position_embeddings=64, num_mtp_layers=0,
    )  # fmt: skip


def save(folder: Path, described: DeepseekV3Config, scale_format: str) -> None:
    """Random e4m3 weights with ``weight_scale_inv``, all else in bf16."""
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(described).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("weight") and not any(k in n for k in KEPT)]:
        codes = squares(tensors[name], scale_format)
        ue8m0 = scale_format == "ue8m0"
        scale = codes.scale.to(torch.float8_e8m0fnu) if ue8m0 else codes.scale
        tensors |= {name: codes.data, f"{name}_scale_inv": scale}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described.quantization_config = {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
        "scale_fmt": scale_format, "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    described.architectures = ["DeepseekV3ForCausalLM"]
    described.save_pretrained(folder)
