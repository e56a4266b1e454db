"""Models and tokenizers: a preset by name, or any HuggingFace folder by path."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from r1kernels.hf import (
    explain_fp8,
    patch,
    patch_elementwise,
    patch_fp8,
    patch_moe,
    register_fp8,
)
from r1kernels.hf.fp8.layers import computes_in_fp8
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.tasks import TASKS
from r1train.model.folder import from_folder, stored_in_fp8
from r1train.model.limits import check_tokenizer
from r1train.model.lora import add_lora
from r1train.model.presets import (
    MADE,
    PRESETS,
    SMOLLM2_FILE,
    make,
    mini_tokenizer,
    smollm2_folder,
    word_tokenizer,
)
from r1train.model.products import patch_linear
from r1train.model.scoring import causal_shell


class OnDevice(Protocol):
    """Options that name a device."""

    @property
    def device(self) -> str | None: ...


def device_of(config: OnDevice) -> torch.device:
    """`config.device`, where "auto", or none, is CUDA if there is one and the CPU otherwise."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device is None or config.device == "auto":
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
        if not folder.is_dir() and config.reference.base is not None:
            raise ConfigError(
                f"model.path = {choice.path!r}: no such folder"
                f"{config.reference.how_to_get(choice.path)}, or give another model.path"
            )
        stored = choice.gguf_file is None and stored_in_fp8(folder)
        if stored and config.precision != "fp8":
            raise ConfigError(
                f"precision = {config.precision!r}: the weights in {str(folder)!r} are FP8, "
                "which needs precision = 'fp8'"
            )
        if stored and choice.lora_rank:
            raise ConfigError(
                f"model.lora_rank = {choice.lora_rank}: the weights in {str(folder)!r} are FP8, "
                "which adapters cannot be merged into: use 0, or a checkpoint in bfloat16"
            )
        if stored:
            register_fp8()
        loaded = dtype if stored else torch.float32
        model, tokenizer = from_folder(folder, choice.gguf_file, loaded)
    elif choice.preset in MADE:
        tokenizer = made_tokenizer(config, texts)
        model = make(choice.preset, tokenizer, config.seed)
    elif choice.preset == "smollm2":
        model, tokenizer = from_folder(smollm2_folder(), SMOLLM2_FILE)
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
        _patch_rest(model, config)
    else:
        _prepare(model, config)
    if choice.lora_rank:
        add_lora(model, choice, config.seed)
    return model, tokenizer


def load_process_reward(
    folder: Path, config: Config
) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]:
    """A token-classification model with one label, on the device and in the dtype of `config`;
    a causal LM around its backbone, by which it runs; and its tokenizer.

    Raises ConfigError where it is no such model.
    """
    classifier, tokenizer = from_folder(folder, auto=AutoModelForTokenClassification)
    labels = classifier.config.num_labels
    if labels != 1:
        raise ConfigError(
            f"the model in {folder} has {labels} labels: a process reward model has one, the value "
            "of a step"
        )
    shell = causal_shell(classifier)
    _prepare(shell, config)
    score: Any = classifier.score
    score.to(shell.device, shell.dtype)
    return classifier, shell, tokenizer


def _prepare(model: PreTrainedModel, config: Config) -> None:
    """Weights in float32 onto the device and into the dtype, and patched."""
    patch_moe(model)  # before the cast, so that its routers' biases stay float32
    _cast(model, device_of(config), getattr(torch, config.dtype))
    if config.precision == "fp8":  # after it: what is faster depends on device and dtype
        _into_fp8(model, config)
    _patch_rest(model, config)


def _patch_rest(model: PreTrainedModel, config: Config) -> None:
    if config.elementwise:
        patch_elementwise(model)
    patch_linear(model)
    patch(model.eval())


def made_tokenizer(config: Config, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """What `model.tokenizer` says, learned from the prompts; words also from the tasks."""
    if config.model.tokenizer == "bytes":
        return mini_tokenizer(texts)
    own = [TASKS[one.name].words for one in config.task.datasets if one.name in TASKS]
    return word_tokenizer(chain(*own, texts))


def _into_fp8(model: PreTrainedModel, config: Config) -> None:
    """Patches what `fp8_layers` names, and says so where that is nothing."""
    known: dict[tuple[str, ...], bool | str] = {("auto",): "auto", ("all",): True}
    patterns = config.patterns()
    try:
        patch_fp8(model, known.get(patterns, patterns))
    except ValueError as error:
        reason = f"expected patterns of names of layers ({error})"
        raise ConfigError(f"fp8_layers = {config.fp8_layers!r}: {reason}") from None
    if not computes_in_fp8(model):
        lines = explain_fp8(model).splitlines()
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
