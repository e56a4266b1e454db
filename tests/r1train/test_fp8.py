"""precision = "fp8": the same recipe with FP8 products, weights in `dtype` as masters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from r1kernels.core import native
from r1kernels.fp8 import speed
from r1kernels.hf import explain_fp8, unregister_fp8
from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.engine.base import FP8_TOLERANCE, Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sync import trainer_logprobs
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.model.presets import mini_tokenizer
from r1train.run.runner import run
from r1train.seeds import deterministic
from tests import fp8_checkpoint
from tests.r1train.conftest import TEXTS


def losses(precision: str, steps: int = 12) -> list[float]:
    layers = "all" if precision == "fp8" else "auto"
    mini = ModelConfig(preset="deepseek-v3-mini")
    config = Config(model=mini, precision=precision, fp8_layers=layers)
    model, tokenizer = load_model(config, TEXTS)
    ids = tokenizer(TEXTS[:16], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)  # as in r1train
    found = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_fp8_learns_as_the_high_precision_does():
    high, fp8 = losses("dtype"), losses("fp8")
    assert fp8 != high
    assert fp8[-1] < 0.7 * fp8[0]
    assert all(abs(a - b) < 0.03 * a for a, b in zip(high, fp8, strict=True))


def test_rollout_and_learner_compute_the_same_but_where_a_last_bit_changes_a_code():
    mini = ModelConfig(preset="deepseek-v3-mini")
    with deterministic(), torch.no_grad():
        model, tokenizer = load_model(Config(model=mini, precision="fp8", fp8_layers="all"), TEXTS)
        model.lm_head.weight *= 10  # logits as far apart as learned ones
        ids = tokenizer(TEXTS[:8])["input_ids"]
        requests = [Request(prompt, 4, seed) for seed, prompt in enumerate(ids)]
        engine = BuiltinEngine(model, tokenizer)
        rollout = engine.generate(requests, Sampling(32))
        difference = (trainer_logprobs(Policy(model), rollout) - rollout.logprobs).abs()
    assert engine.sampling_tolerance == FP8_TOLERANCE
    assert difference.mean() < FP8_TOLERANCE
    assert (difference < 1e-4).float().mean() > 0.8  # in float32 against FP8 none would be


def test_experts_and_linear_layers_compute_in_fp8():
    mini = ModelConfig(preset="deepseek-v3-mini")
    config = Config(model=mini, precision="fp8", fp8_layers="all")
    lines = explain_fp8(load_model(config, TEXTS)[0]).splitlines()
    left = [line for line in lines if ": fp8" not in line]
    assert left == ["lm_head: left, the head stays in high precision"]


def test_layers_that_are_not_known_to_be_faster_are_left_with_a_warning(caplog):
    config = Config(model=ModelConfig(preset="deepseek-v3-mini"), precision="fp8")
    lines = explain_fp8(load_model(config, TEXTS)[0]).splitlines()
    assert not any(": fp8" in line for line in lines)
    assert "no layer computes in FP8 here" in caplog.text
    assert "against one in float32 on" in caplog.text


def test_the_dtype_that_the_weights_are_cast_to_decides(monkeypatch):
    here = native.processor(torch.device("cpu"))
    faster = speed.Speed(1, 1, 512, 1e-3, 2e-3)
    monkeypatch.setattr(speed, "table", lambda: {here: {"bfloat16": [faster]}})
    for dtype in ("float32", "bfloat16"):
        mini = ModelConfig(preset="deepseek-v3-mini")
        model, _ = load_model(Config(model=mini, precision="fp8", dtype=dtype), TEXTS)
        assert (": fp8" in explain_fp8(model)) == (dtype == "bfloat16")


def test_layers_are_named_by_patterns():
    mini = ModelConfig(preset="deepseek-v3-mini")
    patterns = "model.layers.0.mlp.*, model.layers.1.mlp.experts"
    model, _ = load_model(Config(model=mini, precision="fp8", fp8_layers=patterns), TEXTS)
    taken = [line.split(":")[0] for line in explain_fp8(model).splitlines() if ": fp8" in line]
    assert len(taken) == 4
    assert all(".0.mlp." in name or name.endswith("experts") for name in taken)
    with pytest.raises(ConfigError, match="fp8_layers = 'nothing': expected patterns"):
        load_model(Config(model=mini, precision="fp8", fp8_layers="nothing"), TEXTS)


def test_layers_mean_nothing_without_the_precision():
    with pytest.raises(ConfigError, match="fp8_layers = 'all': means nothing without precision"):
        Config(fp8_layers="all")
    with pytest.raises(ConfigError, match="fp8_layers = 'a,,b': expected auto, all"):
        Config(precision="fp8", fp8_layers="a,,b")


@pytest.fixture(params=["float", "ue8m0"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A model whose checkpoint is in FP8, with a tokenizer."""
    pytest.importorskip("accelerate")
    folder = tmp_path / "stored"
    tokenizer = mini_tokenizer(TEXTS)
    described = fp8_checkpoint.config(len(tokenizer))
    described.max_position_embeddings = 256
    described.pad_token_id, described.bos_token_id = tokenizer.pad_token_id, None
    described.eos_token_id = tokenizer.eos_token_id
    fp8_checkpoint.save(folder, described, request.param)
    tokenizer.save_pretrained(folder)
    yield folder
    unregister_fp8()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_on_fp8_weights_leaves_fp8_weights(config, stored, tmp_path):
    path = ["model.preset=none", f"model.path={stored}", "precision=fp8"]
    run(config(*path, "grpo.beta=0.01", "grpo.max_steps=2", "grpo.save_steps=0"))
    found = tmp_path / "runs" / "tiny" / "checkpoint"
    before, after = weights(stored), weights(found)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name + "_scale_inv" in before:
            assert after[name].dtype == torch.float8_e4m3fn
            assert after[name].tolist() != tensor.tolist(), name
        if name.endswith("_scale_inv"):
            assert after[name].dtype == tensor.dtype
    path[1] = f"model.path={found}"
    model, _ = load_model(config(*path))  # and the next stage can start from it
    assert model.model.layers[1].mlp.experts.down_proj.dtype == torch.float8_e4m3fn


def test_fp8_weights_take_no_adapters(config, stored):
    path = ["model.preset=none", f"model.path={stored}", "precision=fp8"]
    with pytest.raises(ConfigError, match=r"model.lora_rank = 4: the weights in .* are FP8"):
        load_model(config(*path, "model.lora_rank=4"))


def test_sft_lowers_the_loss_of_fp8_weights(config, stored, tmp_path):
    path = ["model.preset=none", f"model.path={stored}", "precision=fp8"]
    run(config(*path, 'stages=["sft"]', "sft.max_steps=12"))
    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    found = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert found[-1] < 0.4 * found[0]


def test_fp8_weights_need_fp8_precision(config, stored):
    with pytest.raises(ConfigError, match="which needs precision = 'fp8'"):
        load_model(config("model.preset=none", f"model.path={stored}"))
