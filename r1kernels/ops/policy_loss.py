"""Policy-gradient losses on [T] log-probabilities: loss, gradient and metrics in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels import check
from r1kernels.op import Case, Op
from r1kernels.ops import losses
from r1kernels.ops.losses import KL_ESTIMATORS, LEVELS, LOSSES, METRICS

FLOATS = (torch.float32, torch.float64)


class PolicyLoss(NamedTuple):
    """The loss, differentiable, and detached 0-d tensors of what went into it."""

    loss: Tensor
    metrics: dict[str, Tensor]


def policy_loss(
    logprob: Tensor,
    advantages: Tensor,
    *,
    cu_seqlens: Tensor,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    sampling_logprob: Tensor | None = None,
    mask: Tensor | None = None,
    loss_type: str = "grpo",
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    num_active_tokens: float | Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    max_completion_length: int | None = None,
) -> PolicyLoss:
    """loss = Σ_t w_t·(L_t + beta·KL_t) − entropy_coef·Σ_t H_t / num_active_tokens over active rows.

    L_t and w_t by ``loss_type``; the formulas are those of TRL 1.16, where it has them:

    ========= ============================================ =====================================
    loss_type L_t                                          averaged by
    ========= ============================================ =====================================
    grpo      clipped ratio times −A, see ``losses.ppo``   mean over sequences of token means
    bnpo      the same                                     tokens of this call
    dr_grpo   the same                                     num_sequences·max_completion_length
    dapo      the same                                     num_active_tokens
    gspo      the same with the ratio of the sequence      as grpo
    cispo     −sg(min(ratio, epsilon_high))·A·logprob      num_active_tokens
    reinforce −A·logprob                                   num_active_tokens
    ========= ============================================ =====================================

    Gradient accumulation: give every micro-batch the ``num_active_tokens`` and ``num_sequences`` of
    the whole optimizer step and add the losses up; the sum does not depend on the split. "bnpo" is
    local by definition and does. ``policy_loss`` of the metrics adds up too; the others are means
    over the ``active_tokens`` of this call (``*_max``: maxima).

    Differences of log-probabilities are bounded to ±20, with zero gradient outside. Masked rows
    may hold anything, infinities and NaN too. Gradients flow to logprob, and to entropy.

    Args:
        logprob: [T] of the sampled tokens under the policy, float32 or float64, in nats.
        advantages: [B], one per sequence (this reading wins where T = B), or [T]; dtype of logprob.
        cu_seqlens: [B + 1] int32 or int64: sequence b is rows cu_seqlens[b] … cu_seqlens[b+1] − 1.
        old_logprob: [T] under the policy that the ratio compares with; None: on-policy, ratio 1.
        ref_logprob: [T] under the reference policy, required with ``beta``.
        sampling_logprob: [T] as the sampler reported them, for the sampling_delta metrics.
        mask: [T] bool, True where a token counts; None for all.
        loss_type: see above.
        importance_sampling_level: ratio of the "token", or of the "sequence": the geometric mean.
            "gspo" means the latter whatever is given.
        epsilon: lower clip of the ratio, 1 − epsilon.
        epsilon_high: upper clip, 1 + epsilon_high (default: epsilon). For "cispo" the cap of the
            weight itself, and required there.
        delta: upper bound of the ratio for negative advantages too, above 1 + epsilon_high.
        beta: weight of the KL term.
        kl_estimator: "k1", "k2" or "k3".
        entropy: [T] of the policy's distributions, in nats; required with ``entropy_coef``.
        entropy_coef: weight of the entropy bonus, a mean over active tokens for every loss type.
        num_active_tokens: of the whole optimizer step, a number or 0-d tensor (default: of this
            call).
        num_sequences: of the whole optimizer step, a number or 0-d tensor (default: B). Sequences
            without an active token count too.
        max_completion_length: in tokens, required for "dr_grpo".

    Returns:
        ``PolicyLoss(loss, metrics)``. Metrics: policy_loss (Σ w·L), clip_fraction (active tokens
        whose gradient a bound of the ratio cuts or caps), ratio_mean, ratio_max, active_tokens;
        kl with ref_logprob; entropy with entropy; sampling_delta_mean and sampling_delta_max
        (of |old_logprob, or else logprob, − sampling_logprob|) with sampling_logprob.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "policy_loss"
    check.choice(name, "loss_type", loss_type, tuple(LOSSES))
    check.choice(name, "importance_sampling_level", importance_sampling_level, LEVELS)
    check.choice(name, "kl_estimator", kl_estimator, tuple(KL_ESTIMATORS))
    shapes = check.Shapes(name)
    shapes("logprob", logprob, "T", FLOATS)
    shapes("cu_seqlens", cu_seqlens, "B+1", check.INTS)
    for what, tensor in (
        ("old_logprob", old_logprob),
        ("ref_logprob", ref_logprob),
        ("sampling_logprob", sampling_logprob),
        ("entropy", entropy),
    ):
        if tensor is not None:
            shapes(what, tensor, "T", (logprob.dtype,))
    if mask is not None:
        shapes("mask", mask, "T", (torch.bool,))
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{name}: cu_seqlens: expected at least one element, 0; got none")
    shapes.sizes["B"] = cu_seqlens.shape[0] - 1
    per_token = advantages.dim() == 1 and advantages.shape[0] == logprob.shape[0]
    shapes("advantages", advantages, "T" if per_token else "B", (logprob.dtype,))
    if beta != 0 and ref_logprob is None:
        raise ValueError(f"{name}: ref_logprob: expected a tensor, since beta = {beta}; got None")
    if entropy_coef != 0 and entropy is None:
        raise ValueError(
            f"{name}: entropy: expected a tensor, since entropy_coef = {entropy_coef}; got None"
        )
    if loss_type == "cispo" and epsilon_high is None:
        raise ValueError(
            f"{name}: epsilon_high: expected the cap of the ratio for 'cispo', e.g. 5.0; got None"
        )

    loss = LOSSES[loss_type]
    tokens = _total(num_active_tokens, logprob)
    denominator = tokens
    if loss.average == "local_tokens":
        denominator = None
    elif loss.average == "sequences":
        denominator = _total(num_sequences, logprob)
    elif loss.average == "max_length":
        if max_completion_length is None:
            raise ValueError(
                f"{name}: max_completion_length: expected a number for {loss_type!r}, got None"
            )
        sequences = shapes.sizes["B"] if num_sequences is None else num_sequences
        denominator = _total(sequences * max_completion_length, logprob)
    value, _, _, vector = POLICY_LOSS(
        logprob, advantages, cu_seqlens, old_logprob, ref_logprob, sampling_logprob, mask, entropy,
        denominator, tokens, loss.surrogate, loss.level or importance_sampling_level,
        loss.average == "sequences", epsilon, epsilon if epsilon_high is None else epsilon_high,
        delta, beta, kl_estimator, entropy_coef,
    )  # fmt: skip
    absent = {
        "kl": ref_logprob is None,
        "entropy": entropy is None,
        "sampling_delta_mean": sampling_logprob is None,
        "sampling_delta_max": sampling_logprob is None,
    }
    metrics = zip(METRICS, vector.detach().unbind(), strict=True)
    return PolicyLoss(value, {key: metric for key, metric in metrics if not absent.get(key)})


def _total(count: float | Tensor | None, like: Tensor) -> Tensor | None:
    if count is None:
        return None
    if isinstance(count, Tensor):
        return count.to(like)
    return torch.full((), count, dtype=like.dtype, device=like.device)


def _fake(logprob: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    entropy = rest[6]
    return (
        logprob.new_empty(()),
        logprob.new_empty(logprob.shape),
        logprob.new_empty(0 if entropy is None else logprob.shape[0]),
        logprob.new_empty(len(METRICS)),
    )


def _validate(logprob: Tensor, advantages: Tensor, cu_seqlens: Tensor, *rest: Any) -> None:
    check.cumulative("policy_loss", "cu_seqlens", cu_seqlens, logprob.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad, grad_entropy, metrics = output
    ctx.mark_non_differentiable(grad, grad_entropy, metrics)
    ctx.save_for_backward(grad, grad_entropy)


def _backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Any, ...]:
    grad, grad_entropy = ctx.saved_tensors
    dentropy = dloss * grad_entropy if ctx.needs_input_grad[7] else None
    return dloss * grad, *[None] * 6, dentropy, *[None] * 11


def _case(
    name: str,
    lengths: tuple[int, ...],
    loss_type: str = "grpo",
    *,
    level: str = "token",
    off_policy: bool = True,
    reference: bool = False,
    sampling: bool = False,
    masked: bool = False,
    entropy_coef: float | None = None,
    per_token: bool = False,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    totals: bool = False,
    bench: bool = False,
) -> Case:
    rows = sum(lengths)

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + len(lengths))

        def near(centre: Tensor) -> Tensor:
            return centre + 0.3 * torch.randn(rows, generator=rng)

        loss = LOSSES[loss_type]
        logprob = -2 * torch.rand(rows, generator=rng)
        tensors: tuple[Tensor | None, ...] = (
            logprob,
            torch.randn(rows if per_token else len(lengths), generator=rng),
            torch.tensor([0, *lengths]).cumsum(0).int(),
            near(logprob) if off_policy else None,
            near(logprob) if reference else None,
            near(logprob) if sampling else None,
            torch.rand(rows, generator=rng) < 0.7 if masked else None,
            3 * torch.rand(rows, generator=rng) if entropy_coef is not None else None,
            torch.tensor(100.0) if totals else None,
            torch.tensor(90.0) if totals else None,
        )
        return (
            *(None if t is None else t.to(device) for t in tensors),
            loss.surrogate, loss.level or level, loss.average == "sequences",
            0.2, 5.0 if loss_type == "cispo" else 0.28, delta, beta, kl_estimator,
            entropy_coef or 0.0,
        )  # fmt: skip

    vectors = 3 + off_policy + reference + sampling + 2 * (entropy_coef is not None)
    return Case(name, make, flops=30.0 * rows, bytes=4.0 * vectors * rows, bench=bench)


LENGTHS = (5, 0, 17, 1, 40)
EVERYTHING: dict[str, Any] = {
    "reference": True, "sampling": True, "masked": True, "entropy_coef": 0.01, "beta": 0.04,
    "totals": True, "delta": 1.5,
}  # fmt: skip
CASES = (
    *(_case(loss_type, LENGTHS, loss_type) for loss_type in LOSSES),
    *(_case(f"{loss_type} everything", LENGTHS, loss_type, **EVERYTHING) for loss_type in LOSSES),
    *(
        _case(f"dapo sequence {k}", LENGTHS, "dapo", level="sequence", kl_estimator=k, **EVERYTHING)
        for k in KL_ESTIMATORS
    ),
    _case("on-policy", LENGTHS, off_policy=False, sampling=True),
    _case("advantage per token", LENGTHS, "gspo", per_token=True, masked=True),
    _case("one row", (1,)),
    _case("no rows", (0, 0), "dapo"),
    _case("no sequences", ()),
    _case("long", (1024,) * 1024, "dapo", **EVERYTHING, bench=True),
)

POLICY_LOSS = Op(
    "policy_loss(Tensor logprob, Tensor advantages, Tensor cu_seqlens, Tensor? old_logprob, "
    "Tensor? ref_logprob, Tensor? sampling_logprob, Tensor? mask, Tensor? entropy, "
    "Tensor? denominator, Tensor? num_active_tokens, str surrogate, str level, "
    "bool sequence_mean, float epsilon, float epsilon_high, float? delta, float beta, "
    "str kl_estimator, float entropy_coef) "
    "-> (Tensor loss, Tensor grad_logprob, Tensor grad_entropy, Tensor metrics)",
    reference=losses.reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
)
