"""The tasks of a training step: to learn from a rollout, and to make one.

Models have the shapes of real ones and random weights: no time depends on their values. Every
implementation has a model of its own with the same weights, and is given texts as lists of tokens.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import r1kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from r1kernels.hf import Head
    from r1train.engine.base import Rollout
    from r1train.engine.builtin import BuiltinEngine
    from r1train.learn.grpo import Learner

EPSILON = 0.2
# A mean over the tokens of the whole update: in however many parts it is made, they add up. And
# not zero, as a mean over the sequences is before the first step, where every ratio is 1.
LOSS_TYPE = "dapo"


@dataclass(eq=False)  # hashed by what it is: what an implementation makes of it is kept
class Task:
    """B texts in groups that share a prompt; ``completions`` has none to make a rollout."""

    model: PreTrainedModel  # HuggingFace's own
    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]
    advantages: Tensor  # [B] f32
    group: int  # texts that share a prompt; they are adjacent
    longest: int  # tokens of a completion
    token_budget: int  # of what goes through the model at once, prompts and padding included
    upstream: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.model.parameters())

    @property
    def tokens(self) -> int:
        return sum(map(len, self.completions))


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``. Lengths are ragged, from half the longest."""

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
    peers: tuple[str, ...] | None = None
    yardstick: str = "hf"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.prompts, self.group, self.prompt, self.completion

    @property
    def tokens(self) -> int:
        """Of the completions, by which steps are compared: prompts are not counted."""
        if self.kind == "rollout":
            return self.prompts * self.group * self.completion
        return sum(self.lengths()[1])

    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of each prompt, and of each of its completions."""
        rng = random.Random(0)

        def draw(count: int, longest: int) -> list[int]:
            return [rng.randint((longest + 1) // 2, longest) for _ in range(count)]

        return draw(self.prompts, self.prompt), draw(self.prompts * self.group, self.completion)

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

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        model = made(self.model, self.dtype).to(device)
        budget = self.token_budget
        if dtype is not None:
            model = model.to(dtype)
            model.set_experts_implementation("eager")  # nothing else is quick in float64
            budget = budget * self.dtype.itemsize // dtype.itemsize  # to need no more memory
        rng = random.Random(1)
        vocabulary = range(model.config.vocab_size)
        prompts, completions = (
            [rng.choices(vocabulary, k=length) for length in lengths] for lengths in self.lengths()
        )
        rewards = self.draw_rewards(rng)
        groups = torch.arange(self.prompts).repeat_interleave(self.group)
        return Task(
            model,
            [prompts[group] for group in groups.tolist()],
            completions if self.kind == "update" else [],
            rewards,
            r1kernels.group_advantage(torch.tensor(rewards), groups).to(device),
            self.group,
            self.completion,
            budget,
        )

    def draw_rewards(self, rng: random.Random) -> list[float]:
        """Of every completion: all the same in a group, or 0, 1 or 2 with at least one 0 and 1."""
        active = round(self.active * self.prompts)
        rewards: list[float] = []
        for prompt in range(self.prompts):
            drawn = rng.choices((0.0, 1.0, 2.0), k=self.group - 2)
            rewards += [0.0, 1.0, *drawn] if prompt < active else [1.0] * self.group
        return rewards


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


def update(task: Task) -> tuple[Tensor, ...]:
    """A step of r1train's learner, and the gradients that it would have given to its optimizer."""
    from r1train.seeds import deterministic

    learner, rollout = learning(task)
    with deterministic():  # as in a run
        figures = learner.step(rollout, task.rewards)
    model = learner.policy.model
    loss = torch.tensor(figures["loss"], device=model.device)
    return loss, *take_gradients(model)


def rollout(task: Task) -> tuple[Tensor]:
    """What r1train's engine decodes: tokens [B, N]."""
    from r1train.engine.base import Request, Sampling
    from r1train.seeds import deterministic

    engine = decoding(task)
    requests = [Request(prompt, task.group) for prompt in task.prompts[:: task.group]]
    with deterministic():
        texts = engine.generate(requests, Sampling(task.longest, temperature=0))
    return (torch.tensor(texts.completion_ids, device=engine.model.device),)


@lru_cache(maxsize=1)
def decoding(task: Task) -> BuiltinEngine:
    from r1train.engine.builtin import BuiltinEngine

    never = SimpleNamespace(eos_token_id=-1)  # all that the engine asks of a tokenizer
    return BuiltinEngine(patched(task), never, batch_size=len(task.prompts))


@lru_cache(maxsize=1)
def learning(task: Task) -> tuple[Learner, Rollout]:
    """A learner whose weights stay, and the rollout, with what an engine would have said of it."""
    from r1train.config.sections import GRPOConfig
    from r1train.engine.base import Rollout
    from r1train.learn.grpo import Learner
    from r1train.model.packing import pack
    from r1train.model.policy import Policy
    from r1train.model.routing import recording

    policy = Policy(patched(task))
    config = GRPOConfig(
        num_generations=task.group,
        loss_type=LOSS_TYPE,
        epsilon=EPSILON,
        beta=0.0,
        expert_bias_update_rate=0.0,
        token_budget=task.token_budget,
    )
    learner = Learner(policy, config, temperature=1.0, max_completion_length=task.longest)
    learner.optimizer = NoStep()
    record = recording(policy.model)
    packed = pack(task.prompts, task.completions, policy.device)

    def score(hidden: Tensor, head: Head) -> Tensor:
        return r1kernels.linear_logprob(hidden, head.weight, packed.target).logprob

    with torch.no_grad():
        logprobs = policy.run(packed, score, record)
    return learner, Rollout(
        [list(prompt) for prompt in packed.prompts],
        packed.prompt_index,
        packed.target,
        packed.cu_completions,
        logprobs,
        [True] * len(task.completions),
        record and record.sequences(task.prompts),
    )


class NoStep:
    """In the place of the learner's optimizer: weights and gradients stay as they are."""

    def clip(self) -> Tensor:
        return torch.zeros(())

    def step(self, norm: float) -> dict[str, float]:
        return {}


def patched(task: Task) -> PreTrainedModel:
    """A copy of the model as r1train loads it."""
    from r1kernels.hf import patch

    return patch(copy.deepcopy(task.model))


OURS: dict[str, Callable[[Task], tuple[Tensor, ...]]] = {"update": update, "rollout": rollout}
