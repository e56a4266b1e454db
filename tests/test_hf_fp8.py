"""HuggingFace models in FP8: DeepSeek-V3's checkpoint format trained as it is, and masters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import r1kernels
from r1kernels import hf
from r1kernels.nn import FP8Optimizer, with_scales

pytest.importorskip("accelerate")

VOCABULARY = 96
KEPT = ("embed", "lm_head", "norm", "mlp.gate.")  # in high precision, by parts of their names


def config() -> DeepseekV3Config:
    """Latent attention and experts whose widths are no multiples of 128, and some that are.

    An expert has two blocks each way: transformers saves the scales of a single one as a scalar,
    which it cannot load.
    """
    return DeepseekV3Config(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=320, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=64,
        kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1,
        moe_intermediate_size=256, max_position_embeddings=64, num_mtp_layers=0,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["float", "ue8m0"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    """A tiny DeepSeek-V3 in DeepSeek's own format: e4m3 weights with ``weight_scale_inv``."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config()).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("weight") and not any(k in n for k in KEPT)]:
        codes = r1kernels.fp8_quantize(tensors[name], block=(128, 128), scale_format=request.param)
        ue8m0 = request.param == "ue8m0"
        scale = codes.scale.to(torch.float8_e8m0fnu) if ue8m0 else codes.scale
        tensors |= {name: codes.data, f"{name}_scale_inv": scale}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = config()
    described.quantization_config = {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
        "scale_fmt": request.param, "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    described.architectures = ["DeepseekV3ForCausalLM"]
    described.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    hf.register_fp8()
    yield
    hf.unregister_fp8()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def batch() -> Tensor:
    return torch.randint(VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))


def loss_of(model: Any) -> Tensor:
    found: Tensor = model(batch(), labels=batch()).loss
    return found


def train(model: Any, steps: int, **options: Any) -> list[float]:
    optimizer = FP8Optimizer(torch.optim.AdamW, with_scales(model), lr=1e-3, **options)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_weights_stay_in_fp8(checkpoint: Path) -> None:
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    sizes = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        if not name.endswith("_scale_inv") and not any(kept in name for kept in KEPT):
            sizes[parameter.dtype == torch.float8_e4m3fn] += parameter.nbytes
    assert sizes[False] == 0
    elements = sum(
        p.numel() for n, p in DeepseekV3ForCausalLM(config()).named_parameters()
        if not any(kept in n for kept in KEPT)
    )  # fmt: skip
    assert sizes[True] == elements  # a byte each


def test_it_computes_what_the_decoded_model_does(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    tensors = load_file(checkpoint / "model.safetensors")
    for name in [name for name in tensors if f"{name}_scale_inv" in tensors]:
        scale = tensors.pop(f"{name}_scale_inv").float()
        tensors[name] = r1kernels.fp8_dequantize(tensors[name], scale)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    described = config()
    described.architectures = ["DeepseekV3ForCausalLM"]
    described.save_pretrained(tmp_path)
    decoded = load(tmp_path)
    assert loss_of(model).item() == pytest.approx(loss_of(decoded).item(), rel=5e-3)


def test_it_trains_and_comes_back_from_disk_in_the_same_format(
    checkpoint: Path, tmp_path: Path
) -> None:
    if "ue8m0" in checkpoint.name:
        pytest.skip("FP8Optimizer writes float32 scales")
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    losses = train(model, 20)
    assert losses[-1] < 0.6 * losses[0]
    model.save_pretrained(tmp_path)
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, tmp_path))
    kinds = [
        {n: (t.dtype, t.shape) for n, t in tensors.items() if not n.endswith("correction_bias")}
        for tensors in (before, after)  # the bias is float32 once patched
    ]
    assert kinds[0] == kinds[1]
    again = load(tmp_path)
    hf.patch(again, fp8=True)
    assert loss_of(again).item() == loss_of(model).item()


def test_it_trains_without_masters(checkpoint: Path) -> None:
    if "ue8m0" in checkpoint.name:
        pytest.skip("FP8Optimizer writes float32 scales")
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    losses = train(model, 20, master=False)
    assert losses[-1] < 0.7 * losses[0]


def test_every_weight_gets_a_gradient_in_float32(checkpoint: Path) -> None:
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float8_e4m3fn:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().max() > 0, name
        if name.endswith("_scale_inv"):
            assert parameter.grad is None


def test_generation_runs_on_the_same_weights(checkpoint: Path) -> None:
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    out = model.generate(batch()[:, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (4, 8)


def small() -> Any:
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM(config())


def test_master_weights_give_nearly_the_same_gradients() -> None:
    plain, model = small(), small()
    hf.patch(model, fp8=True)
    loss_of(plain).backward()
    loss_of(model).backward()
    x, y = (  # of all weights; some tokens go to other experts, since their inputs differ a little
        torch.cat([p.grad.flatten().double() for p in m.parameters() if p.grad is not None])
        for m in (plain, model)
    )
    assert 1 - 2 * (x * y).sum() / (x.square().sum() + y.square().sum()) < 3e-2


def test_parameters_and_state_are_unchanged_and_unpatching_restores_everything() -> None:
    model = small()
    state, forwards = set(model.state_dict()), {n: m.forward for n, m in model.named_modules()}
    before = loss_of(model)
    hf.patch(model, fp8=True)
    assert set(model.state_dict()) == state
    assert loss_of(model) != before
    hf.unpatch(model)
    assert loss_of(model) == before
    assert {n: m.forward for n, m in model.named_modules()} == forwards
    assert not any("_r1kernels" in name for m in model.modules() for name in vars(m))


def test_what_stays_in_high_precision_says_why() -> None:
    model = small()
    hf.patch(model, fp8=True)
    lines = dict(line.split(": ", 1) for line in hf.explain_fp8(model).splitlines())
    assert lines["lm_head"] == "left, the head stays in high precision"
    assert lines["model.layers.1.mlp.experts"].startswith("fp8, with its weight as the master")
    assert lines["model.layers.0.self_attn.o_proj"].startswith("fp8")


def test_layers_are_chosen_by_pattern_and_by_speed() -> None:
    model = small()
    hf.patch_fp8(model, ["model.layers.*.mlp.*"])
    chosen = {x.split(":")[0] for x in hf.explain_fp8(model).splitlines() if ": fp8" in x}
    assert chosen
    assert all(".mlp." in name for name in chosen)
    hf.unpatch_fp8(model)
    hf.patch_fp8(model, "auto")
    assert "not measured to be faster on cpu" in hf.explain_fp8(model)
    with pytest.raises(ValueError, match="patch_fp8: DeepseekV3ForCausalLM: expected an unpatched"):
        hf.patch_fp8(model)
    hf.unpatch_fp8(model)
    with pytest.raises(ValueError, match="patch_fp8: layers: expected patterns"):
        hf.patch_fp8(model, ["nothing.*"])
    assert not any("_r1kernels" in name for m in model.modules() for name in vars(m))
