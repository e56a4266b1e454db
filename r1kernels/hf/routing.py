"""Choices of a model's routers, recorded in one forward pass and replayed in another.

In reinforcement learning the rollout and the learner compute a little differently, so that a few
of their routers choose differently, and the learner trains other experts than those that answered.
Replaying the rollout's choices closes that gap. Weights are still those of the live scores, and
carry their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from r1kernels import check
from r1kernels.hf.routers import Router, in_backward, routers

IDS = (torch.int64, torch.int32, torch.int16)


def expert_counts(ids: Tensor, num_experts: int) -> Tensor:
    """ids [T, L, k] → [L, E] int64: how often each expert of a layer was chosen.

    Ids of E and above count nowhere: mask padding with them.
    """
    layers = ids.shape[1]
    rows = ids.long().clamp(max=num_experts).transpose(0, 1).reshape(layers, -1)
    counts = rows.new_zeros(layers, num_experts + 1)
    return counts.scatter_add_(1, rows, torch.ones_like(rows))[:, :num_experts]


class Log:
    """What the layers chose, pass by pass."""

    def __init__(self, layers: int) -> None:
        self.layers: list[list[Tensor]] = [[] for _ in range(layers)]

    def add(self, layer: int, ids: Tensor) -> None:
        self.layers[layer].append(ids.to(torch.int16))

    def passes(self) -> list[Tensor]:
        """[T, L, k] each."""
        if len(runs := {len(layer) for layer in self.layers}) > 1:
            raise RuntimeError(
                f"record_routing: expected every layer as often as any other, got {sorted(runs)}"
            )
        passes = zip(*self.layers, strict=True)
        return [torch.stack([ids.to(layers[0].device) for ids in layers], 1) for layers in passes]


class RecordedRouting:
    """What ``record_routing`` gives."""

    def __init__(self, found: list[Router]) -> None:
        self.experts, self.log = found[0].num_experts, Log(len(found))
        self.taken = torch.zeros(len(found), self.experts, dtype=torch.int64)

    def see(self, router: Router, ids: Tensor) -> None:
        if not in_backward():  # where checkpoints run their layers again
            self.log.add(router.layer, ids)

    def take(self) -> list[Tensor]:
        """The choices of each forward pass since the last call, [T, L, k] int16, oldest first.

        T are the tokens of the pass, [B, S] flattened; the order of k is best first.

        Raises:
            RuntimeError: a pass did not run every layer once.
        """
        log, self.log = self.log, Log(len(self.log.layers))
        passes = log.passes()
        self.taken = self._plus(passes)
        return passes

    @property
    def counts(self) -> Tensor:
        """[L, E] int64: rows that each expert got in all forward passes so far."""
        return self._plus(self.log.passes())

    def _plus(self, passes: list[Tensor]) -> Tensor:
        counts = self.taken
        for ids in passes:
            counts = counts.to(ids.device) + expert_counts(ids, self.experts)
        return counts


class ReplayedRouting:
    """What ``replay_routing`` gives."""

    def __init__(self, found: list[Router], ids: Tensor) -> None:
        shapes = check.Shapes("replay_routing")
        shapes.sizes.update(L=len(found), k=found[0].top_k)
        self.ids = shapes("ids", ids, "T L k", IDS)
        self.experts, self.live = found[0].num_experts, Log(len(found))

    def of(self, router: Router, z: Tensor) -> Tensor:
        """[T, k]: the choices for a layer, whose logits are z [T, E]."""
        ids = self.ids[:, router.layer].to(z.device, torch.int64)
        if len(ids) != len(z):
            raise ValueError(f"replay_routing: ids: expected T = {len(z)} tokens, got {len(ids)}")
        if not in_backward():
            self.live.add(router.layer, router.choose(z))
        return ids

    @property
    def differing(self) -> Tensor:
        """[] float32: the share of replayed choices that live routing would not have made."""
        different = valid = torch.zeros((), dtype=torch.int64, device=self.ids.device)
        for layer, passes in enumerate(self.live.layers):
            ids = self.ids[:, layer]
            there = ids < self.experts
            for live in passes:
                known = (ids[:, :, None] == live[:, None, :].to(ids.device)).any(-1)
                different = different + (there & ~known).sum()
                valid = valid + there.sum()
        return different / valid.clamp(min=1)

    @property
    def counts(self) -> Tensor:
        """[L, E] int64: rows that each expert got in all forward passes so far."""
        return expert_counts(self.ids, self.experts) * len(self.live.layers[0])


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RecordedRouting]:
    """Keep what the routers of a patched model choose.

    >>> with hf.record_routing(model) as record:
    ...     model(input_ids)
    ...     (ids,) = record.take()  # [T, L, k]

    ``record.counts`` [L, E] are the loads; padding counts too, ``expert_counts`` of masked ids
    leaves it out. Under ``replay_routing`` the replayed choices are recorded. Layers that a
    gradient checkpoint runs again are not recorded again.

    Raises:
        ValueError: the model has no patched routers, or is being recorded already.
    """
    found = _routers("record_routing", model)
    if found[0].recording is not None:
        raise ValueError("record_routing: expected a model that is not being recorded")
    record = RecordedRouting(found)
    for router in found:
        router.recording = record
    try:
        yield record
    finally:
        for router in found:
            router.recording = None


@contextmanager
def replay_routing(model: nn.Module, ids: Tensor) -> Iterator[ReplayedRouting]:
    """Make the routers of a patched model choose what was recorded.

    Every forward pass in the context is one over the T tokens of ``ids``. A backward pass through
    gradient checkpoints routes again, so it must run inside the context too.

    Args:
        ids: [T, L, k], int64, int32 or int16, as ``record_routing`` gives them. E and above stand
            for no expert, as padding needs it.

    ``replay.differing`` is the share of them that live routing would not have chosen, and
    ``replay.counts`` [L, E] the loads.

    Raises:
        ValueError, TypeError: the model has no patched routers, or is replaying already; ids of
            another shape or type.
    """
    found = _routers("replay_routing", model)
    if found[0].replaying is not None:
        raise ValueError("replay_routing: expected a model that is not replaying")
    replay = ReplayedRouting(found, ids)
    for router in found:
        router.replaying = replay
    try:
        yield replay
    finally:
        for router in found:
            router.replaying, router.replayed = None, True


def _routers(name: str, model: nn.Module) -> list[Router]:
    found = routers(model)
    if not found:
        got = type(model).__name__
        raise ValueError(f"{name}: model: expected one with patched routers, got a {got} without")
    if len({(router.num_experts, router.top_k) for router in found}) > 1:
        raise ValueError(f"{name}: model: expected as many experts and choices in every layer")
    return found
