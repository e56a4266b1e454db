"""Which experts tokens went to: kept from the rollout, replayed in the learner.

The routing of a sequence is int16 [N, L, k]: the k experts that its N tokens went to in each of L
layers. Those are all tokens of its prompt and completion but the last, which predicts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf import record_routing, replay_routing, routers
from r1train.data.encode import distinct

NO_EXPERT = torch.iinfo(torch.int16).max  # where replayed padding goes: no expert works on it


class Routes(Protocol):
    """What is done with the choices made in the passes of `r1train.model.forward`."""

    def over(self, valid: Tensor) -> AbstractContextManager[None]:
        """Around a pass over tokens [B, S], which are padding where `valid` is False."""


class Recording:
    """Keeps the choices of every pass, those for padding left out."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.passes: list[Tensor] = []  # [N, L, k] for the N tokens of a pass
        self.rows: list[Tensor] = []  # [N]: the sequence that each of them belongs to

    @contextmanager
    def over(self, valid: Tensor) -> Iterator[None]:
        with record_routing(self.model) as record:
            yield
        (ids,) = record.take()
        self.passes.append(ids[valid.flatten()])
        self.rows.append(valid.nonzero()[:, 0])

    def sequences(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The routing of every sequence; the first pass was `prefill` of these prompts."""
        shared, row_of = distinct(prompts)
        heads = self.passes[0].split([len(prompt) for prompt in shared])
        ids = torch.cat([self.passes[0][:0], *self.passes[1:]])
        rows = torch.cat([self.rows[0][:0], *self.rows[1:]])
        order = rows.argsort(stable=True)
        tails = ids[order].split(rows.bincount(minlength=len(prompts)).tolist())
        return [torch.cat([heads[row], tail]) for row, tail in zip(row_of, tails, strict=True)]


def recording(model: PreTrainedModel) -> Recording | None:
    """A recording of what the routers of `model` choose; None where there are none."""
    return Recording(model) if routers(model) else None


class Replay:
    """Sends every token of `completion_hidden` where it went before.

    Only the choice is replayed: weights, and their gradients, are those of the present scores.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], routing: Sequence[Tensor]
    ) -> None:
        shared, row_of = distinct(prompts)
        heads = [routing[row_of.index(i)][: len(prompt)] for i, prompt in enumerate(shared)]
        tails = [ids[len(prompt) :] for prompt, ids in zip(prompts, routing, strict=True)]
        self.model, self.passes = model, [torch.cat(tails), torch.cat(heads)]  # the last is next
        self.shares: list[Tensor] = []
        self.weights: list[int] = []

    @contextmanager
    def over(self, valid: Tensor) -> Iterator[None]:
        ids = self.passes.pop().to(valid.device)
        grid = ids.new_full((*valid.shape, *ids.shape[1:]), NO_EXPERT)
        grid[valid] = ids
        with replay_routing(self.model, grid.flatten(0, 1)) as replay:
            yield
        self.shares.append(replay.differing)
        self.weights.append(len(ids))

    def differing(self) -> Tensor:
        """[]: the share of the choices so far that live routing would not have made."""
        weights = torch.tensor(self.weights, device=self.shares[0].device)
        return (torch.stack(self.shares) * weights).sum() / weights.sum()


class Comparison(Recording):
    """Lets the tokens of `completion_hidden` go where they will; says how many went elsewhere."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], routing: Sequence[Tensor]
    ) -> None:
        super().__init__(model)
        self.prompts, self.routing = prompts, routing

    def differing(self) -> Tensor:
        """[]: the share of the choices in `routing` that were not made again."""
        ids, live = torch.cat(list(self.routing)), torch.cat(self.sequences(self.prompts))
        return (ids[..., :, None] != live[..., None, :]).all(-1).float().mean()
