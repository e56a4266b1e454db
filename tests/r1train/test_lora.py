"""Adapters: they alone are trained, a checkpoint is whole, the reference is the model without."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from r1kernels.hf import patch
from r1train.config.grpo import GRPOConfig
from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.sft import SFTConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sync import WeightSync
from r1train.learn.grpo import Learner
from r1train.learn.sft import SupervisedLearner
from r1train.model.load import load_model
from r1train.model.lora import add_lora, export
from r1train.model.policy import Policy
from r1train.run.export import save_checkpoint
from tests.r1train.conftest import TEXTS

PeftModel = pytest.importorskip("peft").PeftModel
CONFIG = Config(model=ModelConfig(preset="deepseek-v3-mini", lora_rank=4))


@pytest.fixture
def adapted():
    return load_model(CONFIG, TEXTS)


def tied():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=32, num_attention_heads=2, tie_word_embeddings=True, **shape)
    return patch(LlamaForCausalLM(config).eval())


def train(policy, prompts):
    learner = SupervisedLearner(policy, SFTConfig(max_steps=3, learning_rate=1e-2))
    return [learner.step(prompts, [[5, 6, 7], [8], [9, 10], [11]])["loss"] for _ in range(3)]


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_it(adapted, mini):
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(adapted[0](ids).logits, mini[0](ids).logits)
    again, _ = load_model(CONFIG, TEXTS)
    other, _ = load_model(replace(CONFIG, seed=1), TEXTS)
    name = next(name for name in again.state_dict() if "lora_A" in name)
    assert torch.equal(again.state_dict()[name], adapted[0].state_dict()[name])
    assert not torch.equal(other.state_dict()[name], adapted[0].state_dict()[name])


def test_adapters_learn_and_the_weights_below_stay(adapted, prompts):
    model, _ = adapted
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = train(Policy(model, gradient_checkpointing=True), prompts)
    assert losses[2] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_the_weights_of_an_engine_are_merged(adapted, mini, prompts):
    model, _ = adapted
    train(policy := Policy(model), prompts)
    plain, _ = mini
    plain.load_state_dict(dict(policy.weights()))
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", [(), ("q_proj", "o_proj", "lm_head")])
def test_an_engine_with_a_copy_has_the_merged_weights(mini, prompts, targets):
    model, tokenizer = mini
    model.lm_head.weight = model.model.embed_tokens.weight  # tied: its adapter parts them
    add_lora(model, ModelConfig(lora_rank=4, lora_target_modules=targets), 0)
    engine = BuiltinEngine(model, tokenizer, dtype=torch.bfloat16)
    policy = Policy(model)
    sync = WeightSync(engine, policy, prompts[1:3])
    sync(1)
    train(policy, prompts)
    sync(2)
    expected = dict(policy.weights())
    held = engine.weights()
    assert held.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(held[name], tensor.to(held[name].dtype)), name
    assert not any("lora" in name for name, _ in engine.model.named_modules())


def test_a_checkpoint_is_the_whole_model_and_its_adapter(adapted, prompts, tmp_path):
    model, tokenizer = adapted
    train(Policy(model), prompts)
    folder = save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    train(Policy(model), prompts)  # and training goes on


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_an_adapter_on_a_tied_head_or_embedding_unties_them_in_a_checkpoint(targets, tmp_path):
    model = tied()
    add_lora(model, ModelConfig(preset="smollm2", lora_rank=4, lora_target_modules=targets), 0)
    train(Policy(model), [[1, 2], [3], [4], [5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert model.config.tie_word_embeddings
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert all("lora_" in name for name in names)
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.tensor([[5, 6, 7, 8]])
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    adapted = PeftModel.from_pretrained(tied(), tmp_path / "adapter")
    torch.testing.assert_close(adapted(ids).logits, model(ids).logits)


def test_a_head_without_an_adapter_stays_tied_in_a_checkpoint(tmp_path):
    model = tied()
    add_lora(model, ModelConfig(preset="smollm2", lora_rank=4), 0)
    export(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight


def test_the_reference_is_the_adapters_as_they_were(adapted, prompts):
    model, tokenizer = adapted
    config = GRPOConfig(num_generations=4, beta=0.1, learning_rate=1e-2)
    learner = Learner(Policy(model), config, temperature=1.0, max_completion_length=4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained < learner.reference.keys()
    assert all("lora_" in name or "bias" in name for name in learner.reference)
    kl = []
    for seed in range(2):
        requests = [Request(prompts[0], 4, seed)]
        rollout = BuiltinEngine(model, tokenizer).generate(requests, Sampling(4))
        kl.append(learner.step(rollout, [0.0, 1.0, 0.0, 2.0])["kl"])
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-6


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nothing",), "lora_target_modules = nothing: "),
        (("gate_proj", "up_proj", "down_proj"), "adapters on stacked experts"),
    ],
)
def test_modules_that_cannot_have_adapters_are_an_error(mini, targets, message):
    config = ModelConfig(preset="deepseek-v3-mini", lora_rank=4, lora_target_modules=targets)
    with pytest.raises(ConfigError, match=message):
        add_lora(mini[0], config, 0)


def test_modules_without_a_rank_are_an_error():
    with pytest.raises(ConfigError, match=r"lora_target_modules.*means nothing without"):
        ModelConfig(lora_target_modules=("q_proj",))
