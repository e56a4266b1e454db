"""r1train's update without one of the things that it does, to see what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING
from unittest.mock import patch

from torch import Tensor

from benchmarks.peers.adapt import Peer
from benchmarks.train_ours import learn, learner_of, sampled
from benchmarks.train_tasks import Task

if TYPE_CHECKING:
    from r1train.learn.grpo import Learner

OWN_PROMPTS = "own prompts"
EVERY_GROUP = "every group"

Call = Callable[[], tuple[Tensor, ...]]


def own_prompts(task: Task) -> Call:
    """Every completion carries its prompt through the model, instead of one for the group."""
    from r1train.learn.grpo import Learner

    def each_its_own(
        prompts: Sequence[Sequence[int]],
    ) -> tuple[list[tuple[int, ...]], list[int]]:
        return list(map(tuple, prompts)), list(range(len(prompts)))

    learner = learner_of(task.model, Learner, task.group, task.token_budget)
    rollout = sampled(learner.policy, task)

    def call() -> tuple[Tensor, ...]:
        with patch("r1train.model.packing.distinct", each_its_own):
            return learn(learner, rollout, task.rewards)

    return call


def every_group(task: Task) -> Call:
    """Groups whose rewards are all the same go through the model too."""
    learner = learner_of(task.model, thorough(), task.group, task.token_budget)
    return partial(learn, learner, sampled(learner.policy, task), task.rewards)


@cache
def thorough() -> type[Learner]:
    from r1train.learn.grpo import Learner

    class Thorough(Learner):
        _needs_all = True  # as with a KL divergence, but without one

    return Thorough


PEERS = (
    Peer(OWN_PROMPTS, {"update": own_prompts}, needs=("transformers",)),
    Peer(EVERY_GROUP, {"update": every_group}, needs=("transformers",)),
)
