"""A model and its tokenizer from a HuggingFace folder, whole or not at all.

`from_pretrained` fills a missing tensor with random numbers, reads NaN as it comes, and fails on a
damaged file somewhere deep inside. Here each of these is a ConfigError that names file and tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import CONFIG_NAME

from r1kernels.hf.fp8.checkpoint import METHOD
from r1train.config.schema import ConfigError

JSON_FILES = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)
# Buffers that older versions of transformers saved, and scales of caches of other engines.
HARMLESS = re.compile(
    r"(rotary_emb\.inv_freq|position_ids|\.attn\.(masked_)?bias|\.[qkv]_scale|\.kv_scale)$"
)
SHOWN = 5  # names in a message


def stored_in_fp8(folder: Path) -> bool:
    """Whether the weights are e4m3 codes with block scales, as DeepSeek-V3's own."""
    described = _json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    quantization = described.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


def is_classifier(folder: Path) -> bool:
    """Whether a checkpoint is a reward model or the like."""
    named = _json(folder / CONFIG_NAME).get("architectures")
    return any("Classification" in str(name) for name in named or ())


def from_folder(
    folder: Path,
    gguf_file: str | None = None,
    dtype: torch.dtype = torch.float32,
    auto: Any = AutoModelForCausalLM,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with every tensor from the folder, all of them finite, and its tokenizer; `auto` is
    the class of transformers that knows which model it is."""
    needed = folder / (gguf_file or CONFIG_NAME)
    if not folder.is_dir():
        raise ConfigError(f"model.path = {str(folder)!r}: no such folder")
    if not needed.is_file():
        raise ConfigError(f"{folder}: no {needed.name} there: is it a HuggingFace checkpoint?")
    for name in JSON_FILES:
        if (folder / name).is_file():
            _json(folder / name)
    if auto is AutoModelForCausalLM and gguf_file is None and is_classifier(folder):
        raise ConfigError(
            f"the model in {folder} is a classifier, such as a reward model: it scores text and "
            "writes none; give a language model, such as the checkpoint of an sft or rl stage"
        )
    source: dict[str, Any] = {"local_files_only": True, "gguf_file": gguf_file}
    try:
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, **source)
    except Exception as error:  # of libraries, one of which raises plain ones
        raise ConfigError(
            f"the tokenizer in {folder} (tokenizer.json, tokenizer_config.json) cannot be loaded: "
            f"{_line(error)}; copy its files again from where the model is from"
        ) from error
    try:
        loaded: Any = auto.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in `info`, with their names
            **source,
        )
    except Exception as error:
        _check_experts(folder)
        raise ConfigError(f"the model in {folder} cannot be loaded: {_line(error)}") from error
    model, info = loaded
    _check_loaded(folder, info)
    _check_finite(folder, model)
    if gguf_file is not None:  # marked as quantized: save_pretrained would refuse it
        vars(model.config).pop("quantization_config", None)  # and whatever loads it again, too
        fresh = type(model)(model.config)
        fresh.load_state_dict(model.state_dict())
        fresh.generation_config = model.generation_config
        model = fresh
    return model, tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """What reads the tokenizer. One that is all in tokenizer.json, as its configuration says, is
    read as it is: for models of type "qwen2" transformers would put Qwen2's own splitting of words
    in the place of what the file has."""
    path = folder / "tokenizer_config.json"
    named = _json(path).get("tokenizer_class") if path.is_file() else None
    generic = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    whole = generic and (folder / "tokenizer.json").is_file()
    return PreTrainedTokenizerFast if whole else AutoTokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON ({error})"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    else:
        if isinstance(value, dict):
            return value
        reason = "not a JSON object"
    raise ConfigError(f"{path}: {reason}; copy the file again from where the model is from")


def _check_loaded(folder: Path, info: dict[str, Any]) -> None:
    mismatched = [
        f"{name} is {list(stored)} in place of {list(expected)}"
        for name, stored, expected in sorted(info["mismatched_keys"])
    ]
    unexpected = [name for name in info["unexpected_keys"] if not HARMLESS.search(name)]
    for names, what in (
        (info["missing_keys"], "tensors are missing, and would be random"),
        (mismatched, "tensors have another shape than config.json says"),
        (unexpected, "tensors are unknown to the architecture of config.json"),
    ):
        if names:
            raise ConfigError(
                f"the model in {folder} is not whole: {len(names)} {what}: {_some(names)}; "
                "the checkpoint is damaged, or of another model than its config.json"
            )


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    wrong = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and not (tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()
    ]
    if wrong:
        raise ConfigError(
            f"the model in {folder} has {len(wrong)} tensors with NaN or infinite weights: "
            f"{_some(wrong)}; the run that wrote it diverged, or the files are damaged"
        )


def _check_experts(folder: Path) -> None:
    """Names the tensors of single experts without which a layer's could not be put together."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise ConfigError(
                f"{path} cannot be read: {_line(error)}; copy it again, it may be cut short"
            ) from error
    split = {name: re.split(r"\.experts\.(\d+)\.", name) for name in shapes}
    layers: dict[str, set[str]] = {}
    tails: dict[str, set[str]] = {}
    for layer, expert, tail in (parts for parts in split.values() if len(parts) == 3):
        layers.setdefault(layer, set()).add(expert)
        tails.setdefault(layer, set()).add(tail)
    expected = {
        f"{layer}.experts.{expert}.{tail}"
        for layer in layers
        for expert in layers[layer]
        for tail in tails[layer]
    }
    _check_loaded(
        folder,
        {"missing_keys": expected - shapes.keys(), "mismatched_keys": (), "unexpected_keys": ()},
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(_first(names, SHOWN)) + (", …" if len(names) > SHOWN else "")


def _first(names: Iterable[str], count: int) -> list[str]:
    return sorted(names)[:count]


def _line(error: Exception) -> str:
    """What the error says, in one line of some length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"
