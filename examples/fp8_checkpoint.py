"""A checkpoint in DeepSeek-V3's FP8 format, trained as it is and saved as such, on a CPU too.

The checkpoint is a tiny DeepSeek-V3 made on the spot; with one of your own leave `make` out.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from r1kernels import fp8_quantize, hf
from r1kernels.nn import FP8Optimizer, with_scales

HIGH_PRECISION = ("embed", "lm_head", "norm", "mlp.gate.")  # by parts of their names


def make(folder: Path) -> None:
    """e4m3 weights with `weight_scale_inv` for blocks of 128 × 128, all else in bf16."""
    config = DeepseekV3Config(
        vocab_size=99,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=256,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        max_position_embeddings=64,
        num_mtp_layers=0,
    )
    DeepseekV3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if name.endswith("weight") and not any(part in name for part in HIGH_PRECISION):
            codes = fp8_quantize(tensor, block=(128, 128))
            tensors |= {name: codes.data, f"{name}_scale_inv": codes.scale}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    config.architectures = ["DeepseekV3ForCausalLM"]
    config.save_pretrained(folder)


def train(folder: Path, trained: Path) -> None:
    hf.register_fp8()  # from_pretrained keeps FP8 weights instead of making bf16 of them
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    hf.patch(model, fp8=True)
    # Without masters a weight is made float32 for its own step alone, and rounded stochastically.
    optimizer = FP8Optimizer(torch.optim.AdamW, with_scales(model), master=False, lr=1e-3)
    ids = torch.randint(99, (2, 16))
    for step in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
    model.save_pretrained(trained)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as parent:
        folder, trained = Path(parent, "fp8"), Path(parent, "trained")
        make(folder)
        train(folder, trained)
        tensors = load_file(trained / "model.safetensors")
        name = next(name for name in tensors if name.endswith("down_proj.weight"))
        print(f"{name} is saved as {tensors[name].dtype}, beside {name}_scale_inv")


if __name__ == "__main__":
    main()
