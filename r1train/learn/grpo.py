"""The policy-gradient update: from a rollout and its rewards to new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from r1kernels import (
    FusedLoss,
    fused_linear_grpo_loss,
    group_advantage,
    linear_logprob,
)
from r1kernels.hf import Head
from r1train.config.grpo import GRPOConfig
from r1train.config.schema import RunError
from r1train.engine.base import NotANumber, Rollout, tolerance_of
from r1train.learn import learner
from r1train.learn.batch import Batch
from r1train.learn.entropy import EntropyBonus
from r1train.learn.refill import constant_groups
from r1train.metrics import Metrics, Pending
from r1train.model.packing import Packed
from r1train.model.policy import Policy, copy
from r1train.model.routing import Comparison, Replay


class SamplingMismatch(RunError):
    """The trainer's log-probabilities are not those of the engine that sampled the completions."""


@dataclass
class Work(learner.Work):
    """A rollout while it is learned from; the queue has the rows of each update to come, and those
    of them that have a gradient."""

    batch: Batch

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "old_logprobs": known_rows(self.batch.old_logprobs),
            "ref_logprobs": known_rows(self.batch.ref_logprobs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("old_logprobs", "ref_logprobs"):
            found: list[Tensor | None] = getattr(self.batch, name)
            rows, values = state[name]["rows"], state[name]["values"]
            lengths = [len(self.batch.completions[row]) for row in rows]
            for row, own in zip(rows, values.split(lengths) if rows else (), strict=True):
                found[row] = own


class Learner(learner.RolloutLearner[Work]):
    """GRPO on `policy`: one `step` for every rollout, `config.max_steps` of them."""

    def __init__(
        self,
        policy: Policy,
        config: GRPOConfig,
        *,
        temperature: float,
        max_completion_length: int,
        sampling_tolerance: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy, config, passes=config.num_iterations, temperature=temperature, seed=seed
        )
        self.config = config
        self.options = config.loss_options(max_completion_length)
        self.bonus = EntropyBonus(config)
        # Of the engine; unset: of one that samples with the model itself.
        self.sampling_tolerance = sampling_tolerance or tolerance_of(policy.model)
        self.reference: dict[str, Tensor] | None = None  # weights by name
        if config.beta:
            self.reference = {name: tensor.clone() for name, tensor in policy.moving().items()}
        self.steps = 0

    def step(self, rollout: Rollout, rewards: Sequence[float]) -> dict[str, float]:
        """Every update of one rollout; rewards are those of its completions."""
        self.start(rollout, rewards)
        return self.rest()

    def start(self, rollout: Rollout, rewards: Sequence[float]) -> None:
        """Takes a rollout to be learned from. The weights change with the first `update`."""
        constant = constant_groups(rewards, rollout.prompt_index)
        queue = [
            # Rows without any gradient are left out of all but the normalisers.
            (rows, [row for row in rows if not constant[row] or self._needs_all])
            for rows in self.minibatches(len(rollout))
        ]
        self.work = Work(queue, Metrics(), self._batch(rollout, rewards))
        self.work.metrics.add({"frac_reward_zero_std": sum(constant) / len(constant)})

    def update(self) -> None:
        work = self.work
        assert work is not None  # start
        if len(work.queue) == self.updates:
            self._score(work.batch, work.queue)
        rows, active = work.queue.pop(0)
        work.metrics.add(self._update(work.batch, rows, active))

    def finish(self) -> dict[str, float]:
        figures = super().finish()
        self.steps += 1
        every = self.config.ref_model_sync_steps
        if self.reference is not None and every and self.steps % every == 0:
            copy(self.policy.moving(), self.reference)
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "steps": self.steps,
            "reference": self.reference,
            "entropy_bonus": self.bonus.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"]
        if self.reference is not None:
            copy(state["reference"], self.reference)
        self.bonus.load_state_dict(state["entropy_bonus"])

    @property
    def _needs_all(self) -> bool:
        """Whether completions of constant groups have a gradient too."""
        return self.config.beta != 0 or self.config.entropy_coef != 0

    def _batch(self, rollout: Rollout, rewards: Sequence[float]) -> Batch:
        config, lengths = self.config, torch.tensor(rollout.lengths)
        advantages = group_advantage(  # on the CPU: nobody waits for a few hundred numbers
            torch.tensor(rewards, dtype=torch.float32),
            torch.tensor(rollout.prompt_index),
            scale=config.scale_rewards,
            baseline=config.baseline,
            lengths=lengths if config.baseline == "opo" else None,
        )
        return Batch(
            rollout.prompt_ids,
            rollout.completion_ids,
            advantages,
            rollout.logprobs.split(rollout.lengths),
            [None] * len(rollout),
            [None] * len(rollout),
            rollout.routing,
        )

    def _score(self, batch: Batch, updates: Sequence[tuple[list[int], list[int]]]) -> None:
        """Log-probabilities that must be known before the weights change.

        Those of the first update are not among them: it makes them itself.
        """
        first = {*updates[0][1]}
        updated = sorted({row for _, active in updates for row in active})
        self._logprobs(batch, [row for row in updated if row not in first], batch.old_logprobs)
        if self.reference is not None:
            with self.policy.holding(self.reference):
                self._logprobs(batch, updated, batch.ref_logprobs, routed=False)

    @torch.no_grad()
    def _logprobs(
        self,
        batch: Batch,
        rows: Sequence[int],
        found: list[Tensor | None],
        *,
        routed: bool = True,
    ) -> None:
        """Puts the log-probabilities of these rows into `found`.

        A reference is not `routed`: it sends tokens to experts as it will.
        """
        for part, packed in self._parts(batch, rows):

            def score(hidden: Tensor, head: Head, target: Tensor = packed.target) -> Tensor:
                return linear_logprob(
                    head.rows(hidden),
                    head.weight,
                    target,
                    temperature=self.temperature,
                    **head.options,
                ).logprob

            routes = self._routes(batch, part, packed) if routed else None
            logprob = self.policy.run(packed, score, routes)
            keep(found, part, logprob, packed)

    def _parts(self, batch: Batch, rows: Sequence[int]) -> Iterator[tuple[list[int], Packed]]:
        """These rows in micro-batches."""
        prompts = [batch.prompts[row] for row in rows]
        completions = [batch.completions[row] for row in rows]
        for places, packed in self.batches(prompts, completions):
            yield [rows[place] for place in places], packed

    def _update(self, batch: Batch, rows: Sequence[int], active: Sequence[int]) -> dict[str, float]:
        """One optimizer step on `rows`, of which those that are not `active` have no gradient."""
        if not active:
            return self.optimizer.skip()
        pending = Pending()
        for part, packed in self._parts(batch, active):
            pending.add(self._accumulate(batch, part, packed, rows))
        if batch.routing is not None:
            self.load.add([batch.routing[row] for row in rows])
        pending.add({"grad_norm": self.optimizer.clip(), **self.load.figures()})
        *parts, last = pending.read()
        metrics, loss = Metrics(), 0.0
        for figures in parts:
            loss += figures.pop("loss")  # its normalisers are the update's: parts add up
            del figures["policy_loss"]
            metrics.add(figures, weight=figures.pop("active_tokens"))
        self._check_sampler(metrics.values["sampling_delta_mean"])
        if self.config.target_entropy is not None:
            metrics.add({"entropy_coef": self.bonus.weight})
        self.bonus.observe(metrics.values["entropy"])
        self.load.step()
        return metrics.values | {"loss": loss} | last | self.optimizer.step(last["grad_norm"])

    def _accumulate(
        self, batch: Batch, part: Sequence[int], packed: Packed, rows: Sequence[int]
    ) -> dict[str, Tensor]:
        """Adds the gradient of `part`, with the normalisers of `rows`, constant groups included.

        So neither the token budget nor leaving rows out changes what an update does.
        """
        advantages = batch.advantages[part].to(self.policy.device, non_blocking=True)
        old, ref = together(batch.old_logprobs, part), together(batch.ref_logprobs, part)
        routes = self._routes(batch, part, packed)

        def loss(hidden: Tensor, head: Head) -> tuple[Tensor, FusedLoss]:
            fused = fused_linear_grpo_loss(
                head.rows(hidden),
                head.weight,
                packed.target,
                cu_seqlens=packed.cu_completions,
                advantages=advantages,
                old_logprob=old,
                ref_logprob=ref,
                sampling_logprob=torch.cat([batch.sampling_logprobs[row] for row in part]),
                temperature=self.temperature,
                entropy=True,
                options=replace(self.options, entropy_coef=self.bonus.weight),
                num_active_tokens=sum(len(batch.completions[row]) for row in rows),
                num_sequences=len(rows),
                **head.options,
            )
            return fused.loss, fused

        total, fused = self.policy.accumulate(packed, loss, routes)
        if old is None and self.updates > 1:  # later updates compare with the first
            keep(batch.old_logprobs, part, fused.logprob, packed)
        figures = {"loss": total, **fused.metrics}
        if routes is not None:
            figures["routing/differing"] = routes.differing()
        return figures

    def _routes(
        self, batch: Batch, part: Sequence[int], packed: Packed
    ) -> Replay | Comparison | None:
        """Where the rollout sent the tokens of `part`."""
        if batch.routing is None:
            return None
        routes = Replay if self.config.routing_replay else Comparison
        return routes(self.policy.model, packed, [batch.routing[row] for row in part])

    def _check_sampler(self, mean: float) -> None:
        """Before the weights change: the engine must have sampled from the trainer's model."""
        limit = self.sampling_tolerance
        if mean != mean:
            raise NotANumber(
                "the trainer's log-probabilities of the sampled tokens are NaN: its weights have "
                "diverged or overflow, and the update would make all of them NaN"
            )
        if not mean <= limit:
            raise SamplingMismatch(
                f"log-probabilities of the sampled tokens differ by {mean:.3g} on average between "
                f"rollout and trainer (limit {limit:g}): the rollout engine "
                "has other weights, another temperature or another head than the trainer"
            )


def keep(found: list[Tensor | None], rows: Sequence[int], logprob: Tensor, packed: Packed) -> None:
    """Puts the log-probabilities [T] of a packed batch where its completions are."""
    lengths = [len(completion) for completion in packed.completions]
    for row, own in zip(rows, logprob.split(lengths), strict=True):
        found[row] = own


def known_rows(found: Sequence[Tensor | None]) -> dict[str, Any]:
    """The rows that are known, and their values, one after another."""
    rows = [row for row, own in enumerate(found) if own is not None]
    return {"rows": rows, "values": together(found, rows)}


def together(known: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """[T]: those of these rows, of which either all or none are known."""
    own = [logprob for row in rows if (logprob := known[row]) is not None]
    return torch.cat(own) if own else None
