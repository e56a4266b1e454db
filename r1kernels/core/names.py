"""The known name that is nearest to an unknown one, by its letters or in another library."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# The names that TRL, verl, Liger and others have for arguments and values of ours.
ELSEWHERE = {
    "lm_head": "weight", "lin_weight": "weight", "lm_head_weight": "weight",
    "_input": "hidden", "hidden_states": "hidden", "logits_scale": "logit_scale",
    "input_ids": "target", "labels": "target", "selected_token_ids": "target",
    "completion_ids": "target", "responses": "target",
    "log_prob": "logprob", "log_probs": "logprob", "per_token_logps": "logprob",
    "old_log_prob": "old_logprob", "old_log_probs": "old_logprob",
    "old_per_token_logps": "old_logprob", "old_logps": "old_logprob",
    "ref_log_prob": "ref_logprob", "ref_log_probs": "ref_logprob",
    "ref_per_token_logps": "ref_logprob", "ref_logps": "ref_logprob",
    "sampling_per_token_logps": "sampling_logprob", "rollout_log_probs": "sampling_logprob",
    "completion_mask": "mask", "attention_mask": "mask", "response_mask": "mask",
    "loss_mask": "mask",
    "epsilon_low": "epsilon", "eps_clip": "epsilon", "clip_eps": "epsilon", "cliprange": "epsilon",
    "clip_ratio": "epsilon", "clip_ratio_low": "epsilon", "clip_ratio_high": "epsilon_high",
    "cliprange_low": "epsilon", "cliprange_high": "epsilon_high", "eps_clip_high": "epsilon_high",
    "kl_coef": "beta", "kl_loss_coef": "beta", "kl_beta": "beta", "kl_penalty": "kl_estimator",
    "kl_loss_type": "kl_estimator", "entropy_coeff": "entropy_coef", "ent_coef": "entropy_coef",
    "loss_mode": "loss_type", "loss_agg_mode": "loss_type", "adv_estimator": "loss_type",
    "num_items_in_batch": "num_active_tokens", "index": "group_ids", "uid": "group_ids",
    "norm_adv_by_std_in_grpo": "scale_rewards", "compute_entropy": "entropy",
    "process_group": "tp_group", "cu_seqlens_q": "cu_seqlens", "tau_pos": "sapo_temperature_pos",
    "tau_neg": "sapo_temperature_neg",
    "average": "mean", "avg": "mean", "token-mean": "mean", "ppo": "grpo", "vanilla": "grpo",
    "gpu": "cuda", "c++": "cpp", "cpu": "cpp", "pytorch": "torch", "reference": "torch",
    "kl": "k1", "mse": "k2", "low_var_kl": "low_var", "k3plus": "k3+",
}  # fmt: skip


def nearest(value: object, known: Collection[str]) -> str:
    """For the end of an error about a name that is not known: the one that may be meant."""
    if not isinstance(value, str):
        return ""
    # "GRPO" and "token-mean" are near "grpo" and "token_mean" whatever their case and their dashes.
    plain = value.lower().replace("-", "_")
    found = difflib.get_close_matches(plain, known, n=1)
    if ELSEWHERE.get(value.lower()) in known:
        found = [ELSEWHERE[value.lower()]]
    elif plain and not found:
        found = [name for name in known if name.startswith(plain)]
    return f" (did you mean {found[0]!r}?)" if found else ""
