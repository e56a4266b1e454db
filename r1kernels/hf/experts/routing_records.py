"""What the routers of a model chose, pass by pass, and what they are made to choose again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from r1kernels.core import check

IDS = (torch.int64, torch.int32, torch.int16)


def expert_counts(ids: Tensor, num_experts: int) -> Tensor:
    """ids [T, L, k] → [L, E] int64: how often each expert of a layer was chosen.

    Ids of E and above count nowhere: mask padding with them.
    """
    layers = ids.shape[1]
    rows = ids.long().clamp(max=num_experts).transpose(0, 1).reshape(layers, -1)
    counts = rows.new_zeros(layers, num_experts + 1)
    return counts.scatter_add_(1, rows, torch.ones_like(rows))[:, :num_experts]


def in_backward() -> bool:
    """Whether autograd is running backwards, which is when a checkpoint runs its layer again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


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

    def __init__(self, layers: int, num_experts: int) -> None:
        self.experts, self.log = num_experts, Log(layers)
        self.taken = torch.zeros(layers, num_experts, dtype=torch.int64)

    def see(self, layer: int, ids: Tensor) -> None:
        if not in_backward():  # where checkpoints run their layers again
            self.log.add(layer, ids)

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

    def __init__(self, layers: int, num_experts: int, top_k: int, ids: Tensor) -> None:
        shapes = check.Shapes("replay_routing")
        shapes.sizes.update(L=layers, k=top_k)
        self.ids = shapes("ids", ids, "T L k", IDS)
        self.experts, self.live = num_experts, Log(layers)

    def of(self, layer: int, z: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """[T, k]: the choices for a layer, whose logits are z [T, E]; live, it would choose(z)."""
        ids = self.ids[:, layer].to(z.device, torch.int64)
        if len(ids) != len(z):
            raise ValueError(f"replay_routing: ids: expected T = {len(z)} tokens, got {len(ids)}")
        if not in_backward():
            self.live.add(layer, choose(z))
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
