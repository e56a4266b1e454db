"""What the trainer asks of a rollout engine, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf.fp8.layers import computes_in_fp8
from r1train.config.evaluation import EvalConfig
from r1train.config.rollout import RolloutConfig
from r1train.config.schema import RunError
from r1train.seeds import derive_seed

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
FP8_TOLERANCE = 0.1


def tolerance_of(model: PreTrainedModel) -> float:
    """Of the mean |Δlogp| between a sampler with `model` and the trainer.

    Rounding alone stays a hundred times below. The maximum is logged but has no limit: one near-tie
    in an expert router may move it by 1.

    Layers in FP8 have a limit of their own, whatever the dtype. Scales are of single rows, so no
    result depends on the batch, and most tokens are the same bit for bit. But the last bit of an
    activation, in which two passes differ that add up in another order, may round it to the next
    code, a sixteenth away, and from there on whole layers: one such token is as far from itself as
    FP8 is from `dtype`.
    """
    return FP8_TOLERANCE if computes_in_fp8(model) else TOLERANCE[model.dtype]


class NotANumber(RunError):
    """The model gives no distribution to sample from: its logits hold NaN or infinity."""


@dataclass(frozen=True)
class Request:
    """One prompt and how many completions of it are wanted: n completions, not n copies."""

    prompt_ids: Sequence[int]
    n: int = 1
    seed: int = 0
    """Completion j of this request depends on the prompt, this seed and j alone."""


def requests(
    prompts: Sequence[Sequence[int]], n: int, seed: int, *purpose: str | int, first: int = 0
) -> list[Request]:
    """n completions of every prompt. The draws of a prompt follow from the seed, from what they are
    for, and from its place among all, of which these are from the `first` on."""
    return [
        Request(prompt, n, derive_seed(seed, *purpose, place))
        for place, prompt in enumerate(prompts, first)
    ]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Training needs the default filters: none."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the most likely token; log-probabilities are then those at 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    """Strings after which a completion ends, beside the model's own stop tokens; it keeps them."""

    @classmethod
    def training(cls, config: RolloutConfig) -> Sampling:
        """Of completions that are learned from."""
        return cls(config.max_completion_length, config.temperature, stop=config.stop)

    @classmethod
    def evaluation(cls, config: EvalConfig, stop: tuple[str, ...]) -> Sampling:
        """Of held-out problems. Raises ValueError where their length is not known."""
        if config.max_completion_length is None:
            raise ValueError(
                "eval.max_completion_length is None: a Config sets it from the rollout's"
            )
        return cls(
            max_new_tokens=config.max_completion_length,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            stop=stop,
        )


@dataclass(frozen=True)
class Rollout:
    """B completions of P prompts, packed: completion i is `tokens[cu_seqlens[i]:cu_seqlens[i+1]]`.

    Completions of a request are adjacent, and requests are in the order they were given.
    """

    prompts: list[list[int]]
    """[P]: the prompt of each request."""
    prompt_index: list[int]
    """[B]: which of them each completion continues. Completions of one request are a group."""
    tokens: Tensor
    """int64 [T]: tokens sampled, the one that ended the completion included where there is one."""
    cu_seqlens: Tensor
    """int32 [B + 1]."""
    logprobs: Tensor
    """float32 [T]: log-probability of each token under the distribution it was drawn from."""
    finished: list[bool]
    """[B]: False where the length limit cut the completion off."""
    routing: list[Tensor] | None = None
    """Where a mixture of experts sent each sequence (`r1train.model.routing`); else None."""
    version: int = 0
    """Of the weights that sampled it."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, to go on from in another process."""
        routing = self.routing
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "routing": None if routing is None else torch.cat(list(routing)),
            "routing_lengths": None if routing is None else [len(ids) for ids in routing],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Rollout:
        """The rollout of a `state_dict`, on `device`."""
        values: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }
        lengths, routing = values.pop("routing_lengths"), values.pop("routing")
        return cls(**values, routing=None if routing is None else list(routing.split(lengths)))

    def __len__(self) -> int:
        return len(self.finished)

    @cached_property
    def lengths(self) -> list[int]:
        """[B]: tokens of each completion."""
        return [end - start for start, end in pairwise(self.cu_seqlens.tolist())]

    @cached_property
    def prompt_ids(self) -> list[list[int]]:
        """[B]: the prompt of each completion."""
        return [self.prompts[index] for index in self.prompt_index]

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """[B]: the tokens of each completion, on the host."""
        return [ids.tolist() for ids in self.tokens.cpu().split(self.lengths)]


class Engine(Protocol):
    """Samples from weights that it was given; the built-in one shares the trainer's."""

    version: int
    """Of the weights that it samples from."""
    sampling_tolerance: float
    """Of the mean |Δlogp| against the trainer's own log-probabilities."""

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes weights by name; `generate` samples from them and says `version`."""

    def weights(self) -> Mapping[str, Tensor] | None:
        """What it samples from, by the trainer's names; None where it cannot say."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Rollout:
        """`n` completions of every request."""
