"""The memory of a plan is that of a run: measured on a CPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1train.config.recipe import load_config
from r1train.plan.hardware import cluster_of
from r1train.plan.recipe import plan
from r1train.plan.shapes import known

ROOT = Path(__file__).parents[2]
LLAMA = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024,
    "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 192,
    "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 192, "first_k_dense_replace": 1,
}  # fmt: skip
GROUPS = ("grpo.prompts_per_step=2", "grpo.num_generations=8", "grpo.token_budget=2048",
          "rollout.max_completion_length=128")  # fmt: skip
FEW = ("grpo.prompts_per_step=2", "grpo.num_generations=4", "grpo.token_budget=512",
       "rollout.max_completion_length=64")  # fmt: skip


@pytest.mark.slow  # runs of up to 135M parameters
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param(LLAMA, GROUPS, id="llama, 36M"),
        pytest.param(LLAMA, (*GROUPS, "model.gradient_checkpointing=true"), id="checkpointed"),
        pytest.param(DEEPSEEK, GROUPS, id="deepseek_v3, 35M"),
        pytest.param(known()["SmolLM2-135M"], FEW, id="SmolLM2, 135M"),
    ],
)
def test_the_planned_memory_is_that_of_a_run(
    shape: dict[str, object], options: tuple[str, ...], tmp_path: Path
) -> None:
    program = [sys.executable, "tests/r1train/measured_run.py", str(tmp_path), json.dumps(shape)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*program, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    told = [f"model.path={tmp_path}/model", f"plan.prompt_length={measured['prompt']}", *options]
    found = plan(load_config(tmp_path / "measured.toml", told), cluster_of("cpu"))
    _, planned = found.stages[0].memory.peak
    print("MEM", planned / 2**20, measured["peak"] / 2**20, planned / measured["peak"])
    assert planned == pytest.approx(measured["peak"], rel=0.1)
