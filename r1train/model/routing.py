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
from r1train.model.packing import Packed

NO_EXPERT = torch.iinfo(torch.int16).max  # where replayed padding goes: no expert works on it


class Routes(Protocol):
    """What is done with the choices that a model makes for the tokens of sequences."""

    def over(self, valid: Tensor) -> AbstractContextManager[None]:
        """Around a pass over tokens [B, S], which are padding where `valid` is False."""

    def over_row(self, batch: Packed) -> AbstractContextManager[None]:
        """Around the one pass over all tokens of a packed batch, and its backward pass."""


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

    @contextmanager
    def over_row(self, batch: Packed) -> Iterator[None]:
        with record_routing(self.model) as record:
            yield
        (ids,) = record.take()
        first = sum(map(len, batch.prompts))
        self.passes += [ids[:first], ids[first:]]
        owners = torch.tensor(batch.by_prompt, device=ids.device)
        lengths = batch.packing.cu_seqlens[len(batch.prompts) :].diff()
        self.rows += [owners[:0], owners.repeat_interleave(lengths, output_size=len(ids) - first)]

    def sequences(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The routing of every sequence; the first pass was over these prompts, once each."""
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
    """Sends every token of a batch where it went before.

    Only the choice is replayed: weights, and their gradients, are those of the present scores.
    """

    def __init__(self, model: PreTrainedModel, batch: Packed, routing: Sequence[Tensor]) -> None:
        self.model, self.batch, self.routing = model, batch, routing
        self.begun = False  # the first padded pass is over the prompts, the next over what follows
        self.shares: list[Tensor] = []
        self.weights: list[int] = []

    @contextmanager
    def over(self, valid: Tensor) -> Iterator[None]:
        prompts, index = self.batch.prompts, self.batch.prompt_index
        if self.begun:
            parts = [ids[len(prompts[i]) :] for i, ids in zip(index, self.routing, strict=True)]
        else:
            parts = [self.routing[index.index(i)][: len(p)] for i, p in enumerate(prompts)]
        self.begun = True
        ids = torch.cat(parts).to(valid.device)
        grid = ids.new_full((*valid.shape, *ids.shape[1:]), NO_EXPERT)
        grid[valid] = ids
        with self._replaying(grid.flatten(0, 1), len(ids)):
            yield

    @contextmanager
    def over_row(self, batch: Packed) -> Iterator[None]:
        ids = torch.cat(list(self.routing))
        with self._replaying(ids[batch.into_row.to(ids.device)], len(batch.into_row)):
            yield

    @contextmanager
    def _replaying(self, ids: Tensor, tokens: int) -> Iterator[None]:
        with replay_routing(self.model, ids) as replay:
            yield
        self.shares.append(replay.differing)
        self.weights.append(tokens)

    def differing(self) -> Tensor:
        """[]: the share of the choices so far that live routing would not have made."""
        weights = torch.tensor(self.weights, device=self.shares[0].device)
        return (torch.stack(self.shares) * weights).sum() / weights.sum()


class Comparison(Recording):
    """Lets the tokens of a batch go where they will; says how many went elsewhere before."""

    def __init__(self, model: PreTrainedModel, batch: Packed, routing: Sequence[Tensor]) -> None:
        super().__init__(model)
        self.batch, self.routing = batch, routing

    def differing(self) -> Tensor:
        """[]: the share of the choices in `routing` that were not made again."""
        prompts = [self.batch.prompts[index] for index in self.batch.prompt_index]
        ids, live = torch.cat(list(self.routing)), torch.cat(self.sequences(prompts))
        return (ids[..., :, None] != live[..., None, :]).all(-1).float().mean()
