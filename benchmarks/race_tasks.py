"""What trainers race over: a small model, prompts, and a reward that every one of them can raise.

A race is made of whole steps of GRPO: completions are sampled, rewarded, and learned from.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from r1train import in_process

EPSILON = 0.2
LOSS_TYPE = "dapo"  # TRL's default
PROMPTS = 512  # distinct ones
MAX_GRAD_NORM = 1.0


class Race(NamedTuple):
    """Sizes of a step, and how many steps are made from one start."""

    name: str
    model: str  # of MODELS
    prompts: int  # of a step
    group: int  # completions of each
    prompt: int  # tokens of the longest; they are ragged, from half of it
    completion: int  # tokens of the longest; a model may end sooner
    steps: int
    learning_rate: float

    def describe(self) -> str:
        return (
            f"{self.name}: {self.model}, {self.prompts} prompts of ≤ {self.prompt} tokens × "
            f"{self.group} completions of ≤ {self.completion}, {self.steps} steps, float32"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of a step of training; T are the tokens of completions that are not cut short."""
        tokens = self.prompts * self.group * self.completion
        return tokens, self.prompts, self.group, self.prompt, self.completion

    def texts(self, seed: int) -> list[str]:
        """Prompts, one byte a token."""
        rng = random.Random(seed)
        lengths = [rng.randint((self.prompt + 1) // 2, self.prompt) for _ in range(PROMPTS)]
        return ["".join(rng.choices(string.ascii_letters, k=length)) for length in lengths]


@in_process
def digits(completions: Sequence[str], **_: Any) -> list[float]:
    """The share of the ten digits that occur: good samplers still differ within a group."""
    return [len({*text} & {*string.digits}) / len(string.digits) for text in completions]


class Turns(Protocol):
    """How a trainer takes part: before each step it waits for its turn, and then says what it did.

    Only what lies between the two is timed.
    """

    def begin(self) -> None: ...
    def end(self, tokens: int, reward: float) -> None: ...


Run = Callable[[Race, Path, int, str, Turns], None]  # race, folder of the model, seed, device


def qwen2(tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


MODELS: dict[str, Callable[[Any], Any]] = {"qwen2-3m": qwen2}


def save_start(race: Race, seed: int, folder: Path) -> None:
    """The model and the tokenizer that everybody starts from, as a HuggingFace folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from r1train.model.presets import mini_tokenizer

    logging.disable_progress_bar()
    tokenizer = mini_tokenizer(())  # a byte a token
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(MODELS[race.model](tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
