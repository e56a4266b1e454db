"""The tasks of a training step: to learn from a rollout, and to make one.

Models have the shapes of real ones and random weights: no time depends on their values. Every
implementation has a model of its own with the same weights, and is given texts as lists of tokens.
Each round has other texts, of other lengths.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import r1kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EPSILON = 0.2
# A mean over the tokens of the whole update: in however many parts it is made, they add up. And
# not zero, as a mean over the sequences is before the first step, where every ratio is 1.
LOSS_TYPE = "dapo"


@dataclass(eq=False)
class Task:
    """B texts in groups that share a prompt; ``completions`` has none to make a rollout."""

    model: PreTrainedModel  # HuggingFace's own; the same in all rounds, by which others are kept
    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]
    advantages: Tensor  # [B] f32
    group: int  # texts that share a prompt; they are adjacent
    longest: int  # tokens of a completion, at most; a rollout has them all
    token_budget: int  # of what goes through the model at once, prompts and padding included
    upstream: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.model.parameters())

    @property
    def tokens(self) -> int:
        return sum(map(len, self.completions))


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``. Lengths are ragged, from half the longest.

    peers: by default those that anybody could use, and none of the ``ablations``.
    """

    name: str
    model: str  # of MODELS
    prompts: int
    group: int  # completions of each prompt
    prompt: int  # tokens of the longest
    completion: int
    kind: str = "update"
    dtype: torch.dtype = torch.float32
    active: float = 1.0  # share of the groups whose rewards differ
    token_budget: int = 16384
    peers: tuple[str, ...] | None = ("hf", "trl")
    yardstick: str = "hf"

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens of the completions in the first round; prompts are not counted."""
        return self.tokens(0), self.prompts, self.group, self.prompt, self.completion

    def tokens(self, round: int) -> int:
        """Of the completions, by which steps are compared."""
        draw = self.draw(round)
        if self.kind == "rollout":
            return len(draw.completions) * draw.longest
        return sum(map(len, draw.completions))

    @lru_cache(maxsize=4)  # noqa: B019 (scenarios are few)
    def draw(self, round: int) -> Draw:
        """What a round is made of."""
        rng = random.Random(f"{self.name} {round}")
        words = range(MODELS[self.model]().vocab_size)

        def texts(count: int, longest: int) -> list[list[int]]:
            lengths = [rng.randint((longest + 1) // 2, longest) for _ in range(count)]
            return [rng.choices(words, k=length) for length in lengths]

        return Draw(
            texts(self.prompts, self.prompt),
            texts(self.prompts * self.group, self.completion),
            rng.randint((3 * self.completion + 3) // 4, self.completion),
            self.draw_rewards(rng),
        )

    def describe(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.name}: {self.model}, {self.prompts} prompts of ≤ {self.prompt} tokens × "
            f"{self.group} completions of ≤ {self.completion}, {dtype}"
        )

    @property
    def flops(self) -> float:
        return 0.0  # it is tokens that are counted

    @property
    def bytes(self) -> float:
        return 0.0

    @property
    def exact_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None, round: int = 0) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        budget = self.token_budget
        if dtype is None:
            model = kept(self.model, self.dtype, device)
        else:
            model = made(self.model, self.dtype).to(device, dtype)
            model.set_experts_implementation("eager")  # nothing else is quick in float64
            budget = budget * self.dtype.itemsize // dtype.itemsize  # to need no more memory
        draw = self.draw(round)
        groups = torch.arange(self.prompts).repeat_interleave(self.group)
        return Task(
            model,
            [draw.prompts[group] for group in groups.tolist()],
            draw.completions if self.kind == "update" else [],
            draw.rewards,
            r1kernels.group_advantage(torch.tensor(draw.rewards), groups).to(device),
            self.group,
            draw.longest,
            budget,
        )

    def draw_rewards(self, rng: random.Random) -> list[float]:
        """Of every completion: all the same in a group, or 0, 1 or 2 with at least one 0 and 1."""
        active = rng.sample(range(self.prompts), round(self.active * self.prompts))
        rewards: list[float] = []
        for prompt in range(self.prompts):
            drawn = rng.choices((0.0, 1.0, 2.0), k=self.group - 2)
            rewards += [0.0, 1.0, *drawn] if prompt in active else [1.0] * self.group
        return rewards


class Draw(NamedTuple):
    """Texts of a round, and what is given for them."""

    prompts: list[list[int]]  # distinct ones
    completions: list[list[int]]
    longest: int  # tokens that a rollout makes of each
    rewards: list[float]


def llama(**sizes: int) -> Any:
    from transformers import LlamaConfig

    # Logits of about one: from the usual 0.02 a greedy text repeats one token for ever.
    spread = sizes["hidden_size"] ** -0.5
    return LlamaConfig(tie_word_embeddings=True, initializer_range=spread, **sizes)


def deepseek() -> Any:
    from r1train.model.presets import mini_config, mini_tokenizer

    return mini_config(mini_tokenizer(()))


VOCABULARY = 49152
MODELS: dict[str, Callable[[], Any]] = {
    "deepseek-v3-mini": deepseek,
    "llama-mini": partial(
        llama, vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2,
    ),
    "smollm2-135m": partial(
        llama, vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3,
    ),
}  # fmt: skip


def made(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model, made in ``dtype``: a cast would round the frequencies of its positions too."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name](), dtype=dtype)
    model.generation_config.eos_token_id = None  # every completion has all its tokens
    return model.eval()


@lru_cache(maxsize=1)
def kept(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model of all rounds. Nobody changes it: who trains has a copy."""
    return made(name, dtype).to(device)


def padded(texts: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask, [B, S]."""
    rows = [torch.tensor(text) for text in texts]
    both = rows, [torch.ones_like(row) for row in rows]
    ids, mask = (pad_sequence(each, batch_first=True, padding_side=side) for each in both)
    return ids, mask


def take_gradients(model: PreTrainedModel) -> list[Tensor]:
    """Of every parameter; the model then has none."""
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients
