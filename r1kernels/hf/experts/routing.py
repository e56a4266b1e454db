"""Choices of a model's routers, recorded in one forward pass and replayed in another.

In reinforcement learning the rollout and the learner compute a little differently, so that a few
of their routers choose differently, and the learner trains other experts than those that answered.
Replaying the rollout's choices closes that gap. Weights are still those of the live scores, and
carry their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from r1kernels.hf.experts.routers import Router, routers
from r1kernels.hf.experts.routing_records import RecordedRouting, ReplayedRouting


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
    record = RecordedRouting(len(found), found[0].num_experts)
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
    replay = ReplayedRouting(len(found), found[0].num_experts, found[0].top_k, ids)
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
