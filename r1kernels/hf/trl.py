"""TRL's ``GRPOTrainer`` with r1kernels' loss: the trainer, its options and its logs are TRL's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

try:
    import trl
    from transformers import ProcessorMixin
except ImportError as error:
    raise ImportError(
        f"r1kernels.hf.trl: {error.name} is not installed; pip install 'r1kernels[train]' trl"
    ) from error

from r1kernels.hf.grpo import grpo_loss
from r1kernels.hf.logprobs import IGNORED, logprobs
from r1kernels.hf.patched import patch
from r1kernels.hf.trl_metrics import log_metrics
from r1kernels.nn.options import options_of
from r1kernels.ops.losses import LOSSES

NAME = "GRPOTrainer"


class GRPOTrainer(trl.GRPOTrainer):
    """``trl.GRPOTrainer`` whose log-probabilities and loss are r1kernels'.

    Takes the same arguments and makes the same updates. Only completion tokens go through the head,
    tokens without a gradient are skipped, and it needs no GPU to be fast.

    Differences: with ``entropy_coef`` and a loss averaged over the tokens of the step ("dapo",
    "cispo", "vespo"), the entropy is averaged over them too, and not per micro-batch first;
    differences of log-probabilities are bounded to ±20; "vespo/phi_seq_mean" is not logged.

    Raises:
        NotImplementedError: at construction, naming the option of ``GRPOConfig`` that the loss
            cannot honour.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self)
        patch(self.model)
        if self.ref_model is not None:
            patch(self.ref_model)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        _check_text_only(inputs)
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        labels[:, :-logits_to_keep] = IGNORED
        found = []
        size = batch_size or len(labels)
        for part in zip(*(x.split(size) for x in (input_ids, attention_mask, labels)), strict=True):
            with self.accelerator.autocast():
                found.append(
                    logprobs(
                        model,
                        *part[:2],
                        labels=part[2],
                        temperature=self.temperature,
                        entropy=compute_entropy,
                    )
                )
        logprob = torch.cat([part.logprob for part in found])[:, -logits_to_keep:]
        if not compute_entropy:
            return logprob, None, None
        return logprob, torch.cat([part.entropy for part in found])[:, -logits_to_keep:], None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        _check_text_only(inputs)
        mode = "train" if self.model.training else "eval"
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        with self.accelerator.autocast():
            fused = grpo_loss(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                mask,
                advantages=inputs["advantages"],
                temperature=self.temperature,
                ref_logprob=inputs["ref_per_token_logps"] if self.beta != 0 else None,
                beta=self.beta,
                use_bias_correction_kl=self.args.use_bias_correction_kl and self.beta != 0,
                entropy=True,
                entropy_coef=self.entropy_coef,
                num_active_tokens=self._step_tokens(inputs, mode, steps),
                max_completion_length=self.max_completion_length,
                **_loss_options(self),
                **_off_policy(self, inputs),
            )
        # A loss of its own normaliser is a mean per micro-batch; TRL's Trainer sums those.
        share = 1 if LOSSES[self.loss_type].average == "tokens" else 1 / steps
        log_metrics(self, mode, fused, inputs, mask)
        return fused.loss * share

    def _step_tokens(self, inputs: dict[str, Any], mode: str, steps: int) -> Tensor | None:
        """The tokens of one optimizer step, per process, where the loss is an average over them."""
        if LOSSES[self.loss_type].average != "tokens":
            return None
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        # It counts the generation batch, which evaluation neither splits nor accumulates.
        return tokens * steps / self.args.steps_per_generation if mode == "train" else tokens


def _loss_options(trainer: trl.GRPOTrainer) -> dict[str, Any]:
    args = trainer.args
    return options_of(
        NAME,
        trainer.loss_type,
        trainer.importance_sampling_level,
        epsilon=trainer.epsilon_low,
        epsilon_high=trainer.epsilon_high,
        delta=args.delta,
        sapo_temperature_pos=args.sapo_temperature_pos,
        sapo_temperature_neg=args.sapo_temperature_neg,
        vespo_k_pos=args.vespo_k_pos,
        vespo_lambda_pos=args.vespo_lambda_pos,
        vespo_k_neg=args.vespo_k_neg,
        vespo_lambda_neg=args.vespo_lambda_neg,
    )


def _off_policy(trainer: trl.GRPOTrainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """What compares the policy with the one that sampled, where they were not the same."""
    old, sampling = (inputs.get(f"{who}_per_token_logps") for who in ("old", "sampling"))
    options: dict[str, Any] = {"old_logprob": old, "sampling_logprob": sampling}
    if old is not None or sampling is not None:
        options["off_policy_mask_threshold"] = trainer.off_policy_mask_threshold
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        high = trainer.vllm_importance_sampling_clip_max
        options["rollout_correction"] = trainer.vllm_importance_sampling_mode
        options["rollout_clip_min"] = trainer.vllm_importance_sampling_clip_min
        options["rollout_clip_max"] = math.inf if high is None else high
    return options


def _check(trainer: trl.GRPOTrainer) -> None:
    _loss_options(trainer)
    unsupported = {
        "top_entropy_quantile": trainer.top_entropy_quantile < 1,
        "use_adaptive_entropy": trainer.use_adaptive_entropy,
        "cast_lm_head_to_fp32": trainer.args.cast_lm_head_to_fp32,
        "router_aux_loss_coef": trainer.aux_loss_enabled,
        "processing_class": isinstance(trainer.processing_class, ProcessorMixin),
    }
    for option, given in unsupported.items():
        if given:
            value = getattr(trainer.args, option, type(trainer.processing_class).__name__)
            raise NotImplementedError(f"{NAME}: {option}: {value!r} is not supported")


def _check_text_only(inputs: dict[str, Any]) -> None:
    for name in ("pixel_values", "token_type_ids", "mm_token_type_ids"):
        if inputs.get(name) is not None:
            raise NotImplementedError(f"{NAME}: {name}: only text is supported")
