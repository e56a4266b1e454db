"""Which of TRL's options the loss honours, and what it makes of them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from r1kernels.nn.options import level_of, options_of
from r1kernels.policy.policy_loss_options import PolicyLossOptions

NAME = "GRPOTrainer"
# What the model would be given beside text.
OF_IMAGES = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
    "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


def check_arguments(args: Any, processing_class: Any) -> None:
    """Refuse what is not honoured; args: a ``GRPOConfig``, None for the default one.

    Raises:
        NotImplementedError: naming the option, and what to set instead.
        ValueError: an unknown loss type, or a level that it does not have.
    """
    if args is not None:
        if args.use_liger_kernel:
            raise NotImplementedError(
                f"{NAME}: use_liger_kernel: True is not supported, since Liger would replace the "
                f"forward that r1kernels patches; set use_liger_kernel=False (the fused loss is on "
                f"without it)"
            )
        level_of(NAME, args.loss_type, args.importance_sampling_level)
    if isinstance(processing_class, ProcessorMixin):
        raise NotImplementedError(
            f"{NAME}: processing_class: {type(processing_class).__name__} is not supported, only "
            f"text is; give its .tokenizer, or train with trl.GRPOTrainer"
        )


def check_text_only(inputs: dict[str, Any]) -> None:
    for name in OF_IMAGES:
        if inputs.get(name) is not None:
            raise NotImplementedError(
                f"{NAME}: {name}: expected None, since only text is supported; train on images "
                f"with trl.GRPOTrainer"
            )


def loss_options(trainer: Any, inputs: dict[str, Any]) -> PolicyLossOptions:
    args = trainer.args
    return options_of(
        NAME,
        trainer.loss_type,
        trainer.importance_sampling_level,
        max_completion_length=trainer.max_completion_length,
        beta=trainer.beta,
        use_bias_correction_kl=trainer.beta != 0 and args.use_bias_correction_kl,
        epsilon=trainer.epsilon_low,
        epsilon_high=trainer.epsilon_high,
        delta=args.delta,
        sapo_temperature_pos=args.sapo_temperature_pos,
        sapo_temperature_neg=args.sapo_temperature_neg,
        vespo_k_pos=args.vespo_k_pos,
        vespo_lambda_pos=args.vespo_lambda_pos,
        vespo_k_neg=args.vespo_k_neg,
        vespo_lambda_neg=args.vespo_lambda_neg,
        **_off_policy(trainer, inputs),
    )


def _off_policy(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What compares the policy with the one that sampled, where they were not the same."""
    options: dict[str, Any] = {}
    if any(inputs.get(f"{who}_per_token_logps") is not None for who in ("old", "sampling")):
        options["off_policy_mask_threshold"] = trainer.off_policy_mask_threshold
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        high = trainer.vllm_importance_sampling_clip_max
        options["rollout_correction"] = trainer.vllm_importance_sampling_mode
        options["rollout_clip_min"] = trainer.vllm_importance_sampling_clip_min
        options["rollout_clip_max"] = math.inf if high is None else high
    return options


def logprobs(trainer: Any, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    """Those of the policies that the present one is compared with, as ``policy_loss`` has them."""
    known = {f"{who}_logprob": inputs.get(f"{who}_per_token_logps") for who in ("old", "sampling")}
    if trainer.beta != 0:
        known["ref_logprob"] = inputs["ref_per_token_logps"]
    return {name: None if x is None else x.flatten() for name, x in known.items()}
