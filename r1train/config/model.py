"""Where a model comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1train.config.schema import CountOrZero, Positive, Section


@dataclass(frozen=True)
class ModelConfig(Section, section="model"):
    """Where the model and its tokenizer come from: `path` or `preset`."""

    preset: str | None = None
    """Name of a built-in model: "deepseek-v3-mini" or "qwen2-mini", which are made from the seed,
    or "smollm2"."""
    tokenizer: Literal["bytes", "words"] = "bytes"
    """What the tokens are of a preset that is made from the seed: pieces of words, down to single
    bytes, learned from the training prompts; or all words of these and of our own tasks."""
    path: str | None = None
    """Folder of a HuggingFace checkpoint (config, safetensors, tokenizer)."""
    gguf_file: str | None = None
    """GGUF file inside `path`, for checkpoints that come in that format."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of each layer for the backward pass and compute the rest again: less
    memory, about a third more work."""
    lora_rank: CountOrZero = 0
    """Rank of low-rank adapters, trained in place of the weights (TRL's lora_r); 0: none."""
    lora_alpha: Positive = 32.0
    """Their products are scaled by lora_alpha / lora_rank (TRL: 32)."""
    lora_target_modules: tuple[str, ...] = ()
    """Names of the linear layers that have one, such as "q_proj"; empty: all but the head, and in a
    mixture of experts those of the attention."""

    def check(self) -> None:
        both = self.preset is not None and self.path is not None
        self.require(not both, "preset", "not both preset and path; the value none clears one")
        homeless = self.gguf_file is not None and self.path is None
        self.require(not homeless, "gguf_file", "names a file inside model.path: give that too")
        idle = bool(self.lora_target_modules) and self.lora_rank == 0
        self.require(not idle, "lora_target_modules", "means nothing without model.lora_rank")
