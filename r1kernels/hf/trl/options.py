"""Which of TRL's options the loss honours, and what it makes of them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from r1kernels.nn.options import options_of

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
        options_of(NAME, args.loss_type, args.importance_sampling_level)
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


def loss_options(trainer: Any) -> dict[str, Any]:
    """Keywords of ``policy_loss``."""
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


def off_policy_options(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What compares the policy with the one that sampled, where they were not the same."""
    old, sampling = (inputs.get(f"{who}_per_token_logps") for who in ("old", "sampling"))
    options: dict[str, Any] = {"old_logprob": _flat(old), "sampling_logprob": _flat(sampling)}
    if old is not None or sampling is not None:
        options["off_policy_mask_threshold"] = trainer.off_policy_mask_threshold
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        high = trainer.vllm_importance_sampling_clip_max
        options["rollout_correction"] = trainer.vllm_importance_sampling_mode
        options["rollout_clip_min"] = trainer.vllm_importance_sampling_clip_min
        options["rollout_clip_max"] = math.inf if high is None else high
    return options


def reference_options(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The KL term."""
    if trainer.beta == 0:
        return {}
    return {
        "ref_logprob": _flat(inputs["ref_per_token_logps"]),
        "beta": trainer.beta,
        "use_bias_correction_kl": trainer.args.use_bias_correction_kl,
    }


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.flatten()
