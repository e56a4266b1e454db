"""Checkpoints that are not whole, and files that are damaged: one ConfigError that names them."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.task import DatasetConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.model.folder import from_folder
from r1train.model.limits import fitting_problems
from r1train.model.load import load_model
from r1train.model.presets import mini_tokenizer
from r1train.run import writing
from r1train.run.export import save_checkpoint
from r1train.run.folder import RunFolder


def qwen(tokenizer, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = Qwen2Config(**sizes, **heads, **{**size, **options})
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return mini_tokenizer(["What is 12 + 34?"])


@pytest.fixture
def folder(tokenizer, tmp_path):
    return save_checkpoint(qwen(tokenizer), tokenizer, tmp_path / "model")


def edit(folder, change):
    """Changes the tensors of a checkpoint in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def load(folder):
    return load_model(Config(model=ModelConfig(path=str(folder))))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(NORM), r"1 tensors are missing, and would be random: model\.norm\.weight"),
        (lambda t: t.pop("lm_head.weight"), r"missing.*lm_head\.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "unknown to the architecture.*: extra"),
        (lambda t: t.update({NORM: torch.zeros(3)}), r"model\.norm\.weight is \[3\] in place of"),
        (lambda t: t[NORM].fill_(float("nan")), r"NaN or infinite weights: model\.norm\.weight"),
        (lambda t: t[NORM][:1].fill_(float("inf")), r"NaN or infinite weights: model\.norm"),
    ],
)
def test_a_checkpoint_that_is_not_whole(folder, change, reason):
    edit(folder, change)
    with pytest.raises(ConfigError, match=rf"the model in .*model .*{reason}"):
        load(folder)


def test_what_is_no_fault_of_a_checkpoint(tokenizer, folder, tmp_path):
    load(folder)
    edit(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    load(folder)
    tied = save_checkpoint(qwen(tokenizer, tie_word_embeddings=True), tokenizer, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load(tied)
    edit(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load(tied)


def test_a_tokenizer_of_whole_words_is_read_as_it_was_written(tmp_path):
    """With a model of type "qwen2", whose own tokenizer splits texts in another way."""
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "twenty-one": 3}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    written = PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    save_checkpoint(qwen(written), written, tmp_path / "words")
    _, read = from_folder(tmp_path / "words")
    assert read("twenty-one x twenty-one")["input_ids"] == [3, 2, 3]
    assert (read.eos_token_id, read.pad_token_id) == (1, 0)


def test_the_tensor_of_one_expert_is_named(mini, tmp_path):
    folder = save_checkpoint(*mini, tmp_path / "moe")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    edit(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", b"{", r"config\.json: not valid JSON"),
        ("config.json", b"[]", r"config\.json: not a JSON object"),
        ("config.json", b"\xff\xfe{", r"config\.json: not valid JSON"),
        ("config.json", None, r"no config\.json there"),
        ("config.json", b'{"model_type": "qwen9"}', "cannot be loaded.*qwen9"),
        ("tokenizer.json", b"{", r"tokenizer\.json: not valid JSON"),
        ("tokenizer.json", b"{}", r"tokenizer.*tokenizer\.json.*cannot be loaded"),
        ("tokenizer_config.json", b"nope", r"tokenizer_config\.json: not valid JSON"),
        ("model.safetensors", b"\0" * 40, r"model\.safetensors cannot be read"),
        ("model.safetensors", b"", r"model\.safetensors cannot be read"),
        ("model.safetensors", None, "cannot be loaded"),
    ],
)
def test_damaged_files_are_named(folder, file, content, reason):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_file_that_was_cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read.*cut short"):
        load(folder)


def test_a_tokenizer_without_an_end(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(ConfigError, match=r"no end-of-sequence token.*tokenizer_config\.json"):
        load(folder)


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_larger_than_the_embedding(folder, special):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<reason>"], special_tokens=special)
    tokenizer.save_pretrained(folder)
    if not special:
        expected = rf"has {size + 1} tokens and the model's embedding \d+ rows: '<reason>'"
        with pytest.raises(ConfigError, match=f"{expected}.*resize_token_embeddings"):
            load(folder)
        return
    model, tokenizer = load(folder)  # as checkpoints have tokens for images: unused, they are none
    fitting(model, tokenizer, "plain", 4, Problem("chain_sum", 0, "1 + 1", "2"))
    with pytest.raises(ConfigError, match=f"token '<reason>', number {size}"):
        fitting(model, tokenizer, "plain", 4, Problem("chain_sum", 0, "<reason>", "2"))


def fitting(model, tokenizer, template, length, *problems, **options):
    sources = (DatasetConfig(path="a.jsonl", **options),)
    return fitting_problems(model, tokenizer, ProblemSet(problems, sources), template, length)


def test_prompt_and_completion_fit_the_positions(folder):
    model, tokenizer = load(folder)
    problems = [
        Problem("a.jsonl", 6, "1 " * 20, "2", place="a.jsonl, line 7"),
        Problem("a.jsonl", 7, "1", "2"),
    ]
    assert len(fitting(model, tokenizer, "{question}", 24, *problems)) == 2
    expected = r"a\.jsonl, line 7: its prompt of 40 tokens and a completion of 25 go past.* 64 pos"
    with pytest.raises(ConfigError, match=expected):
        fitting(model, tokenizer, "{question}", 25, *problems)
    with pytest.raises(ConfigError, match="problem 3: its prompt is empty"):
        fitting(model, tokenizer, "{question}", 1, Problem("chain_sum", 2, "", "2"))


def test_prompts_that_are_too_long_are_skipped_where_the_dataset_says_so(folder, caplog):
    model, tokenizer = load(folder)
    long, short = Problem("a.jsonl", 6, "1 " * 20, "2"), Problem("a.jsonl", 7, "1", "2")
    kept = fitting(model, tokenizer, "{question}", 25, long, short, on_bad_row="skip")
    assert list(kept) == [short]
    assert "1 of 2 prompts are skipped" in caplog.text
    with pytest.raises(ConfigError, match="all 1 prompts with a completion of 25 tokens go past"):
        fitting(model, tokenizer, "{question}", 25, long, on_bad_row="skip")


def test_the_old_checkpoint_is_gone_only_when_the_new_one_is_whole(tokenizer, folder, monkeypatch):
    """Wherever writing stops, one whole checkpoint is there."""
    model = qwen(tokenizer)
    stages = ["synced", "synced_folder", "removed"]
    for module, name in [(writing, stage) for stage in stages] + [(os, "rename")]:
        for call in range(3):
            calls = 0
            true = getattr(module, name)

            def stops(*arguments, true=true, call=call):
                nonlocal calls
                calls += 1
                if calls == call + 1:
                    raise KeyboardInterrupt
                return true(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, stops)
                with contextlib.suppress(KeyboardInterrupt):
                    save_checkpoint(model, tokenizer, folder)
            previous = folder.with_name("model.previous")
            from_folder(folder if folder.exists() else previous)
            save_checkpoint(model, tokenizer, folder)  # and the next one is made as ever
            assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_everything_is_synced_before_the_old_one_goes(tokenizer, folder, monkeypatch):
    happened = []
    true_sync, true_rename = os.fsync, os.rename

    def sync(descriptor):
        happened.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        true_sync(descriptor)

    def rename(old, new):
        happened.append(f"{os.path.basename(old)} to {os.path.basename(new)}")
        true_rename(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    save_checkpoint(qwen(tokenizer), tokenizer, folder)
    first = happened.index("model to model.previous")
    assert {path.name for path in folder.iterdir()} | {"model.partial"} == {*happened[:first]}
    assert happened[first + 1 : first + 2] == ["model.partial to model"]
    assert happened[first + 2 :] == [folder.parent.name]


def test_a_model_replaces_a_link_to_a_folder_elsewhere(tokenizer, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    save_checkpoint(qwen(tokenizer), tokenizer, folder)
    assert not folder.is_symlink()
    load(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "elsewhere"}
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_what_cannot_be_put_in_its_place_does_not_stay(tokenizer, folder, monkeypatch):
    def refused(old, new):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(ConfigError, match="model cannot be written: Operation not permitted"):
        save_checkpoint(qwen(tokenizer), tokenizer, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    load(folder)


def test_a_full_disk_is_said(tokenizer, folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Qwen2ForCausalLM, "save_pretrained", full)
    with pytest.raises(ConfigError, match=r"model cannot be written: No space left.*output_dir"):
        save_checkpoint(qwen(tokenizer), tokenizer, folder)
    load(folder)  # the old one


def test_what_fails_while_a_run_is_at_work_is_not_taken_for_its_lock(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), RunFolder(tmp_path).locked():
        os.stat(tmp_path / "nowhere")
