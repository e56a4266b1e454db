from __future__ import annotations

import pytest

from r1train.config.model import ModelConfig
from r1train.config.recipe import load_config
from r1train.config.sections import Config
from r1train.model.load import load_model
from r1train.rewards.pool.pool import VerifierPool
from tests.r1train.misbehaving import Misbehaving

TEXTS = [f"User: What is {a} + {b}?\nAssistant:" for a in range(10) for b in range(10)]

RECIPE = """
name = "tiny"
threads = 1
[model]
preset = "deepseek-v3-mini"
[task]
prompt_template = "plain"
train_size = 32
heldout_size = 8
datasets = [{ name = "chain_sum", params = { max_terms = 2, max_digits = 1 } }]
[sft]
max_steps = 3
batch_size = 16
learning_rate = 3e-3
[rollout]
max_completion_length = 12
[grpo]
max_steps = 3
prompts_per_step = 2
num_generations = 4
eval_steps = 2
save_steps = 2
log_completions_steps = 3
beta = 0.0
[eval]
k = 2
"""


@pytest.fixture
def mini():
    """The deepseek-v3-mini model and its tokenizer, made from seed 0."""
    return load_model(Config(model=ModelConfig(preset="deepseek-v3-mini")), TEXTS)


@pytest.fixture
def prompts(mini):
    """Three prompts of different lengths, the first one twice."""
    texts = ["User: What is 1 + 2?\nAssistant:", "7", "What is 3?"]
    first, second, third = mini[1](texts)["input_ids"]
    assert len({len(first), len(second), len(third)}) == 3
    return [first, first, second, third]


@pytest.fixture
def config(tmp_path):
    """A run of a few steps, as `config(*overrides)`; its folder is in `tmp_path / "runs"`."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)

    def load(*overrides):
        return load_config(path, [f"output_dir={tmp_path}/runs", *overrides])

    return load


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """One for many attempts, in an empty folder, with a secret in the trainer's environment."""
    folder = tmp_path_factory.mktemp("verifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_TOKEN_SECRET", "hf_abc")
        with VerifierPool(Misbehaving("sympy"), workers=1, timeout=20.0) as pool:
            yield pool
    assert list(folder.iterdir()) == []
