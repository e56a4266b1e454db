"""precision = "fp8": the same recipe with FP8 products, weights in `dtype` as masters."""

from __future__ import annotations

import torch

from r1kernels.hf import explain_fp8
from r1train.config import Config, ModelConfig
from r1train.model import load_model
from tests.r1train.conftest import TEXTS


def losses(precision: str, steps: int = 12) -> list[float]:
    config = Config(model=ModelConfig(preset="deepseek-v3-mini"), precision=precision)
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


def test_experts_and_linear_layers_compute_in_fp8():
    config = Config(model=ModelConfig(preset="deepseek-v3-mini"), precision="fp8")
    lines = explain_fp8(load_model(config, TEXTS)[0]).splitlines()
    left = [line for line in lines if ": fp8" not in line]
    assert left == ["lm_head: left, the head stays in high precision"]
