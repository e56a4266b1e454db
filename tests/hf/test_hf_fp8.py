"""HuggingFace models in FP8: DeepSeek-V3's checkpoint format trained as it is, and masters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

import r1kernels
from r1kernels import hf
from r1kernels.core import native
from r1kernels.fp8 import speed
from r1kernels.nn import FP8Optimizer, with_scales
from tests.fp8_checkpoint import KEPT, VOCABULARY, config, save

pytest.importorskip("accelerate")


@pytest.fixture(scope="module", params=["float", "ue8m0"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    save(folder, config(), request.param)
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


def test_a_copy_gets_gradients_in_float32_too(checkpoint: Path) -> None:
    """PyTorch forgets the dtype of a gradient in copies; e4m3 would be no gradient at all."""
    model = load(checkpoint)
    hf.patch(model, fp8=True)
    other = copy.deepcopy(model).train()
    ids = batch()
    other(ids, labels=ids).loss.backward()
    stored = [
        p for p in other.parameters() if p.dtype == torch.float8_e4m3fn and p.grad is not None
    ]
    assert stored
    assert {p.grad.dtype for p in stored} == {torch.float32}


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


def test_auto_takes_what_was_measured_to_be_faster_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = native.processor(torch.device("cpu"))
    measured = [speed.Speed(96, 32, 512, 1e-3, 2e-3), speed.Speed(32, 32, 512, 3e-3, 2e-3)]
    monkeypatch.setattr(speed, "table", lambda: {here: {"float32": measured}})
    model = small()
    hf.patch_fp8(model, "auto")
    lines = dict(line.split(": ", 1) for line in hf.explain_fp8(model).splitlines())
    figures = f"in float32 on {here}: "
    faster = f"forward and backward faster than {figures}1 against 2 ms of 512 × 96 × 32"
    slower = f"forward and backward slower than {figures}3 against 2 ms of 512 × 32 × 32"
    seen = {line for line in lines.values() if " than " in line}
    assert seen == {f"fp8, with its weight as the master; {faster}", f"left, {slower}"}
    for name, line in lines.items():
        weight = next(model.get_submodule(name).parameters(recurse=False))
        if " than " in line:
            assert line.startswith("fp8") == (weight.shape[0] >= 96 and weight.shape[1] >= 32)
    assert lines["model.layers.1.mlp.experts"] == "left, no record of the speed of experts in FP8"


def test_layers_are_chosen_by_pattern_and_by_speed() -> None:
    model = small()
    hf.patch_fp8(model, ["model.layers.*.mlp.*"])
    chosen = {x.split(":")[0] for x in hf.explain_fp8(model).splitlines() if ": fp8" in x}
    assert chosen
    assert all(".mlp." in name for name in chosen)
    hf.unpatch_fp8(model)
    hf.patch_fp8(model, "auto")
    assert "left, no record of its speed against one in float32 on " in hf.explain_fp8(model)
    assert ": fp8" not in hf.explain_fp8(model)
    with pytest.raises(ValueError, match="patch_fp8: DeepseekV3ForCausalLM: expected an unpatched"):
        hf.patch_fp8(model)
    hf.unpatch_fp8(model)
    with pytest.raises(ValueError, match="patch_fp8: layers: expected patterns"):
        hf.patch_fp8(model, ["nothing.*"])
    assert not any("_r1kernels" in name for m in model.modules() for name in vars(m))
