"""The policy-gradient update: from a rollout and its rewards to new weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels import fused_linear_grpo_loss, group_advantage, linear_logprob
from r1kernels.hf import head_of
from r1train.config.schema import RunError
from r1train.config.sections import GRPOConfig
from r1train.engine.base import SAMPLING_TOLERANCE, NotANumber, Rollout
from r1train.learn.batch import Batch, micro_batches
from r1train.learn.expert_load import ExpertLoad
from r1train.learn.optim import Optimizer
from r1train.metrics import Metrics
from r1train.model.forward import completion_hidden
from r1train.model.routing import Comparison, Replay


class SamplingMismatch(RunError):
    """The trainer's log-probabilities are not those of the engine that sampled the completions."""


class Learner:
    """GRPO on `model`: one `step` for every rollout, `config.max_steps` of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: GRPOConfig,
        *,
        temperature: float,
        max_completion_length: int,
        sampling_tolerance: float | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.config, self.temperature = model, config, temperature
        self.max_completion_length = max_completion_length
        # Of the engine; unset: of one that samples in the dtype of the model.
        self.sampling_tolerance = sampling_tolerance or SAMPLING_TOLERANCE[model.dtype]
        self.updates = config.num_iterations * config.num_minibatches  # of one rollout
        warmup = config.warmup_steps * self.updates
        self.optimizer = Optimizer(model, config, config.max_steps * self.updates, warmup)
        self.reference = copy.deepcopy(model).requires_grad_(False) if config.beta else None
        self.load = ExpertLoad(model, config.expert_bias_update_rate)
        self.generator = torch.Generator().manual_seed(seed)  # order of the minibatches
        self.steps = 0

    def step(self, rollout: Rollout, rewards: Sequence[float]) -> dict[str, float]:
        """Every update of one rollout; each prompt's `num_generations` completions are adjacent."""
        config, device = self.config, self.model.device
        reward = torch.tensor(rewards, dtype=torch.float32, device=device)
        group = torch.arange(len(rewards), device=device) // config.num_generations
        lengths = torch.tensor(rollout.lengths, device=device)
        advantages = group_advantage(
            reward,
            group,
            scale=config.scale_rewards,
            baseline=config.baseline,
            lengths=lengths if config.baseline == "opo" else None,
        )
        table = reward.view(-1, config.num_generations)
        constant = (table.amax(1) == table.amin(1)).repeat_interleave(config.num_generations)
        batch = Batch(
            rollout.prompt_ids,
            rollout.completion_ids,
            advantages,
            list(rollout.logprobs.split(rollout.lengths)),
            routing=rollout.routing,
        )
        if self.updates > 1:
            batch = replace(batch, old_logprobs=self._logprobs(self.model, batch))
        metrics = Metrics()
        metrics.add({"frac_reward_zero_std": constant.float().mean().item()})
        for rows in self._minibatches(len(batch)):
            metrics.add(self._update(batch.take(rows), constant[rows]))
        self.steps += 1
        every = config.ref_model_sync_steps
        if self.reference is not None and every and self.steps % every == 0:
            self.reference.load_state_dict(self.model.state_dict())
        return metrics.values

    def _minibatches(self, size: int) -> Iterator[list[int]]:
        for _ in range(self.config.num_iterations):
            order = torch.arange(size)
            if self.config.num_minibatches > 1:
                order = torch.randperm(size, generator=self.generator)
            for part in order.tensor_split(self.config.num_minibatches):
                yield part.tolist()

    def _update(self, batch: Batch, constant: Tensor) -> dict[str, float]:
        """One optimizer step on `batch`, whose rows of constant groups have no policy gradient."""
        active = batch
        if not self.config.beta and not self.config.entropy_coef:  # nor any other: leave them out
            active = batch.take((~constant).nonzero()[:, 0].tolist())
        if not len(active):
            return self.optimizer.skip()
        metrics, loss = Metrics(), 0.0
        for rows in micro_batches(active.prompts, active.completions, self.config.token_budget):
            figures = self._backward(active.take(rows), batch)
            loss += figures.pop("loss")  # its normalisers are the update's: parts add up
            del figures["policy_loss"]
            metrics.add(figures, weight=figures.pop("active_tokens"))
        self._check_sampler(metrics.values["sampling_delta_mean"])
        if batch.routing is not None:
            self.load.add(batch.routing)
        return metrics.values | {"loss": loss} | self.optimizer.step() | self.load.step()

    def _backward(self, part: Batch, whole: Batch) -> dict[str, float]:
        """Adds the gradient of `part`, with the normalisers of `whole`, constant groups included.

        So neither the token budget nor leaving rows out changes what an update does.
        """
        config = self.config
        routes = self._routes(self.model, part)
        hidden, target, cu_seqlens = completion_hidden(
            self.model, part.prompts, part.completions, routes
        )
        head = head_of(self.model)
        old = ref = None
        if part.old_logprobs is not None:
            old = torch.cat(part.old_logprobs)
        if self.reference is not None:
            ref = torch.cat(self._logprobs(self.reference, part))
        fused = fused_linear_grpo_loss(
            head.rows(hidden),
            head.weight,
            target,
            cu_seqlens=cu_seqlens,
            advantages=part.advantages,
            old_logprob=old,
            ref_logprob=ref,
            sampling_logprob=torch.cat(part.sampling_logprobs),
            temperature=self.temperature,
            entropy=True,
            # bnpo is the mean over the tokens it is given: here they are those of the whole update.
            loss_type="dapo" if config.loss_type == "bnpo" else config.loss_type,
            importance_sampling_level=config.importance_sampling_level,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            delta=config.delta,
            beta=config.beta,
            kl_estimator=config.kl_estimator,
            entropy_coef=config.entropy_coef,
            num_active_tokens=whole.num_tokens,
            num_sequences=len(whole),
            max_completion_length=self.max_completion_length,
            **head.options,
        )
        fused.loss.backward()
        figures = {"loss": fused.loss.detach(), **fused.metrics}
        if routes is not None:
            figures["routing/differing"] = routes.differing()
        values = torch.stack(list(figures.values())).tolist()  # one transfer
        return dict(zip(figures, values, strict=True))

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
        """Log-probabilities of the completions under `model`, in the order of `batch`."""
        found: dict[int, Tensor] = {}
        head = head_of(model)
        for rows in micro_batches(batch.prompts, batch.completions, self.config.token_budget):
            part = batch.take(rows)
            hidden, target, _ = completion_hidden(
                model, part.prompts, part.completions, self._routes(model, part)
            )
            logprob = linear_logprob(
                head.rows(hidden),
                head.weight,
                target,
                temperature=self.temperature,
                **head.options,
            ).logprob
            found |= zip(rows, logprob.split([len(c) for c in part.completions]), strict=True)
        return [found[row] for row in range(len(batch))]

    def _routes(self, model: PreTrainedModel, part: Batch) -> Replay | Comparison | None:
        """Where the rollout sent the tokens of `part`; the reference sends them where it will."""
        if model is not self.model or part.routing is None:
            return None
        routes = Replay if self.config.routing_replay else Comparison
        return routes(model, part.prompts, part.routing)

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
