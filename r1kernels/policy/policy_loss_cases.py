"""Arguments of the op ``policy_loss`` for tests and benchmarks: every loss, bare and with all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1kernels.core.op import Case
from r1kernels.policy import losses
from r1kernels.policy.losses import KL_ESTIMATORS, LOSSES, ROLLOUT_CORRECTIONS
from r1kernels.policy.policy_loss_reference import Arguments

LENGTHS = (5, 0, 17, 1, 40)
# Bounds that the made-up ratios cross, and a share of tokens that is not one of a thousand.
OPTIONS = {"epsilon_high": 0.28, "delta": 1.5, "clip_ratio_c": 1.6, "seed": 3}


def _case(
    name: str,
    lengths: tuple[int, ...],
    loss_type: str = "grpo",
    *,
    off_policy: bool = True,
    everything: bool = False,
    per_token: bool = False,
    grouped: bool = False,
    bench: bool = False,
    **changes: Any,
) -> Case:
    """Arguments for ``loss_type``, all optional tensors among them if ``everything``."""
    rows, loss = sum(lengths), LOSSES[loss_type]

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + len(lengths))

        def near(centre: Tensor) -> Tensor:
            return centre + 0.3 * torch.randn(rows, generator=rng)

        logprob = -2 * torch.rand(rows, generator=rng)
        chosen = {"epsilon": 0.2, "epsilon_high": 1.1}
        chosen |= {key: value for key, value in loss.options.items() if isinstance(value, float)}
        chosen |= {key: OPTIONS[key] for key in OPTIONS if everything and key in loss.options}
        arguments = Arguments(
            logprob=logprob,
            advantages=torch.randn(rows if per_token else len(lengths), generator=rng),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            group_ids=torch.arange(len(lengths)) // 3 if grouped else None,
            old_logprob=near(logprob) if off_policy else None,
            ref_logprob=near(logprob) if everything else None,
            sampling_logprob=near(logprob) if everything else None,
            mask=torch.rand(rows, generator=rng) < 0.7 if everything else None,
            selected=torch.rand(rows, generator=rng) < 0.2 if loss_type.endswith("_cov") else None,
            entropy=3 * torch.rand(rows, generator=rng) if everything else None,
            denominator=torch.tensor(100.0) if everything else None,
            num_active_tokens=torch.tensor(90.0) if everything else None,
            surrogate=loss.surrogate,
            options=losses.parameters(loss.surrogate, chosen),
            level=loss.levels[0],
            sequence_mean=loss.average == "sequence_means",
            beta=0.04 if everything else 0.0,
            kl_estimator="k3",
            use_bias_correction_kl=everything,
            entropy_coef=0.01 if everything else 0.0,
            rollout_correction="token_truncate" if everything else "none",
            rollout_clip_min=0.8 if everything else 0.0,
            rollout_clip_max=1.3 if everything else math.inf,
            off_policy_mask_threshold=0.05 if everything else math.inf,
            scale="group",
            baseline="mean",
            eps=1e-4,
        )._replace(**changes)
        return tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)

    vectors = 3 + off_policy + 4 * everything
    return Case(name, make, flops=30.0 * rows, bytes=4.0 * vectors * rows, bench=bench)


PLAIN: dict[str, Any] = {
    "use_bias_correction_kl": False, "rollout_correction": "none", "rollout_clip_min": 0.0,
    "rollout_clip_max": math.inf, "off_policy_mask_threshold": math.inf,
}  # fmt: skip
CASES = (
    *(_case(loss_type, LENGTHS, loss_type) for loss_type in LOSSES),
    *(_case(f"{name} everything", LENGTHS, name, everything=True) for name in LOSSES),
    *(
        _case(f"gspo {name}", LENGTHS, "gspo", everything=True, kl_estimator=function)
        for name, function in KL_ESTIMATORS.items()
    ),
    *(
        _case(f"dapo {name}", LENGTHS, "dapo", everything=True, rollout_correction=name)
        for name in ROLLOUT_CORRECTIONS
    ),
    _case("token form of gspo", LENGTHS, "gspo", everything=True, level="sequence_token"),
    _case("vespo masked", LENGTHS, "vespo", everything=True, rollout_correction="token_mask"),
    _case("on-policy", LENGTHS, off_policy=False),
    _case("advantage per token", LENGTHS, "gspo", per_token=True, everything=True),
    _case("gmpo, advantage per token", LENGTHS, "gmpo", per_token=True, everything=True),
    _case("rewards", LENGTHS, grouped=True),
    _case("rewards rloo", LENGTHS, grouped=True, scale="batch", baseline="rloo"),
    _case("one row", (1,)),
    _case("no rows", (0, 0), "dapo", everything=True),
    _case("no sequences", ()),
    _case("long", (1024,) * 1024, "dapo", everything=True, bench=True, **PLAIN),
    _case("long, sequence level", (1024,) * 1024, "gspo", everything=True, bench=True),
)
