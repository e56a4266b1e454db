"""The specialisations of policy_loss's kernel that must compile: every level, most branches."""

from __future__ import annotations

import triton.language as tl

from r1kernels.policy.losses import LOSSES, PARAMETERS
from r1kernels.policy.policy_loss_reference import Arguments
from r1kernels.policy.triton.group_advantage import BLOCK as REWARDS
from r1kernels.policy.triton.policy_loss import BLOCK, SEQUENCES, WARPS, kernel
from r1kernels.policy.triton.surrogates import FUNCTIONS
from r1kernels.triton.build import Build


def _build(
    loss_type: str, *, bare: bool = False, grouped: bool = False, rollout: str | None = None
) -> Build:
    loss = LOSSES[loss_type]
    words = {
        "level": loss.levels[0],
        "sequence_mean": loss.average == "sequence_means",
        "use_bias_correction_kl": not bare,
        "scale": "group",
        "baseline": "mean",
    }
    types = dict.fromkeys(Arguments._fields, "*fp32") | {
        "cu_seqlens": "*i32",
        "group_ids": "*i64" if grouped else None,
        "mask": "*u8",
        "selected": "*u8" if loss_type.endswith("_cov") else None,
        "options": ("fp32",) * len(PARAMETERS[loss.surrogate]),
        "off_policy_mask_threshold": None if bare else "fp32",
        "surrogate": None,
        "kl_estimator": None,
        "rollout_correction": rollout and tl.constexpr(rollout),
    }  # fmt: skip
    numbers = ("beta", "entropy_coef", "rollout_clip_min", "rollout_clip_max", "eps")
    types |= dict.fromkeys(numbers, "fp32")
    types |= {name: tl.constexpr(word) for name, word in words.items()}
    if bare:
        optional = ("ref_logprob", "sampling_logprob", "entropy", "denominator")
        types |= dict.fromkeys((*optional, "num_active_tokens"), None)
    signature = {
        "a": Arguments(**types),
        **dict.fromkeys(("loss", "grad", "grad_entropy", "metrics"), "*fp32"),
        "parts": "*fp64",
        "counter": "*i32",
        "count": "*i64" if bare else None,
        "rows": "i32",
        "sequences": "i32",
    }
    chosen = {
        "SURROGATE": FUNCTIONS[loss.surrogate],
        "LOG_RATIO": FUNCTIONS["gmpo_log_ratio"] if loss_type == "gmpo" else None,
        "KL": None if bare else FUNCTIONS["k3"],
        "BY_TOKEN": False,
        "BLOCK": BLOCK,
        "REWARDS": REWARDS,
        "SEQUENCES": SEQUENCES,
    }
    return Build(kernel, signature, chosen, {"num_warps": WARPS})


BUILDS = (
    _build("grpo", grouped=True, rollout="sequence_truncate"),
    _build("gmpo", rollout="token_mask"),
    _build("vespo", bare=True),
    _build("dppo_kl", bare=True),
)
