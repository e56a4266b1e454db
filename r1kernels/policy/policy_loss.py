"""Policy-gradient losses on [T] log-probabilities: loss, gradient and metrics in one pass."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Op
from r1kernels.core.remembered import remembered
from r1kernels.policy import covariance
from r1kernels.policy import policy_loss_inputs as inputs
from r1kernels.policy.losses import KL_ESTIMATORS, LOSSES
from r1kernels.policy.policy_loss_cases import CASES
from r1kernels.policy.policy_loss_options import LossOptions, PolicyLossOptions, options_of_call
from r1kernels.policy.policy_loss_reference import METRICS, Arguments, Sequences, reference

NAME = "policy_loss"
ADVANTAGE_EPS = 1e-4


class PolicyLoss(NamedTuple):
    """A policy loss, and what went into it."""

    loss: Tensor
    """0-d, differentiable."""
    metrics: dict[str, Tensor]
    """Detached 0-d tensors by name, see ``policy_loss``."""


def policy_loss(
    logprob: Tensor,
    advantages: Tensor | None = None,
    *,
    cu_seqlens: Tensor,
    rewards: Tensor | None = None,
    group_ids: Tensor | None = None,
    scale_rewards: str = "group",
    baseline: str = "mean",
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    sampling_logprob: Tensor | None = None,
    mask: Tensor | None = None,
    entropy: Tensor | None = None,
    num_active_tokens: float | Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    options: PolicyLossOptions | None = None,
    **keywords: Unpack[LossOptions],
) -> PolicyLoss:
    """loss = Σ_t w_t·(c_t·L_t + beta·KL_t) − entropy_coef·Σ_t H_t / num_active_tokens, t active.

    L_t and the average w_t by ``loss_type``. A advantage, ℓ logprob, r = e^(ℓ − old_logprob) the
    ratio, p = e^ℓ, ε epsilon, ε' epsilon_high, sg stopped gradient.

    ========== ======================================================== ================
    loss_type  L_t                                                      averaged by
    ========== ======================================================== ================
    grpo       −min(r·A, clip(r, 1 − ε, 1 + ε')·A)                      sequence means
    bnpo       as grpo                                                  local tokens
    dr_grpo    as grpo                                                  max length
    dapo       as grpo                                                  tokens
    gspo       as grpo, r of the sequence                               sequence means
    luspo      as grpo, r of the sequence                               sequence sums
    gmpo       −A·r, r the geometric mean of ratios clipped one by one  sequence means
    cispo      −sg(min(r, ε'))·A·ℓ  (TRL)                               tokens
    cispo_clip −sg(clip(r, 1 − ε, 1 + ε'))·A·ℓ  (verl)                  tokens
    sapo       −A·(4/τ)·σ(τ·(r − 1))                                    sequence means
    vespo      −sg(φ)·A·ℓ, φ = e^(λ + k·x − λ·eˣ), x = Σ log r          tokens
    dppo_tv    −sg(min(r, c))·A·ℓ, or 0: p moved outward by over ε      tokens
    dppo_kl    the same, by the binary KL of p from its old value       tokens
    reinforce  −A·ℓ                                                     tokens
    clip_cov   as grpo, or 0 for a few tokens                           tokens
    kl_cov     −A·r, and + κ·|log r| for a few tokens                   tokens
    ========== ======================================================== ================

    Options, one that a loss lacks being an error; epsilon_high is epsilon by default:

    - grpo, bnpo, dr_grpo, dapo, gspo, luspo: epsilon = 0.2, epsilon_high; delta, a bound of r for
      A < 0 too, min(r, δ)·A in place of r·A (INTELLECT-2), and clip_ratio_c, the dual clip
      L ≤ −c·A for A < 0: none by default.
    - gmpo: epsilon = 0.4, epsilon_high, bounds of the *log* ratios.
    - cispo: epsilon_high, the cap itself, required. cispo_clip: epsilon = 0.2, epsilon_high.
    - sapo: sapo_temperature_pos = 1.0, sapo_temperature_neg = 1.05 (τ by the sign of A).
    - vespo: vespo_k_pos = 2, vespo_lambda_pos = 3, vespo_k_neg = 3, vespo_lambda_neg = 2.
    - dppo_tv: epsilon = 0.2, dppo_kl: epsilon = 0.05; both epsilon_high, clip_ratio_c = 20 (c).
      The bound is ε' for A > 0 and ε for A < 0: of |p − p_old|, or of the KL of p from p_old as
      chances of one event, and only where p went the way that A pushes it.
    - clip_cov: epsilon = 0.2, epsilon_high, clip_cov_ratio = 0.0002, clip_cov_lb = 1,
      clip_cov_ub = 5, and seed = 0, to be another one at every step. The share clip_cov_ratio of
      the active tokens is left out, at random of those that the clip leaves alone and whose
      cov = (A − mean A)·(ℓ − mean ℓ) is between the bounds.
    - kl_cov: kl_cov_ratio = 0.0002, ppo_kl_coef = 1 (κ): the share of the active tokens with the
      largest cov. At least one, as with clip_cov.

    Averages: *sequence means*: mean over num_sequences of the token means; *sequence sums*: of the
    token sums; *tokens*: Σ/num_active_tokens; *local tokens*: over the active tokens of this call;
    *max length*: Σ/(num_sequences·max_completion_length).

    Gradient accumulation and several ranks: give every call the ``num_active_tokens`` and
    ``num_sequences`` of the whole optimizer step and add the losses up; the sum does not depend on
    the split. "bnpo" is local by definition, the covariances of clip_cov and kl_cov are those of
    the call. ``policy_loss`` of the metrics adds up too; the others are means over the
    ``active_tokens`` of this call (``*_max``: maxima).

    Differences of log-probabilities are bounded to ±20, with zero gradient outside; that of two
    −inf is 0. Masked rows may hold anything, infinities and NaN too; a NaN of an active one is in
    the loss, in its gradient and in every metric that it enters. Gradients flow to logprob, and to
    entropy.

    Args:
        logprob: [T] of the sampled tokens under the policy, float32 or float64, in nats.
        advantages: [B], one per sequence (this reading wins where T = B), or [T]; dtype of logprob;
            or else
        rewards, group_ids: [B], of complete groups; scale_rewards and baseline: see
            ``group_advantage``. For "opo" the lengths are the active tokens.
        cu_seqlens: [B + 1] int32 or int64: sequence b is rows cu_seqlens[b] … cu_seqlens[b+1] − 1.
        old_logprob: [T] under the policy that the ratio compares with; None: on-policy, ratio 1.
        ref_logprob: [T] under the reference policy, required with ``beta``.
        sampling_logprob: [T] as the sampler reported them; NaN where it did not: taken for
            old_logprob there.
        mask: [T] bool, True where a token counts; None for all.
        loss_type: see above.
        importance_sampling_level: whose ratio: "token"; "sequence", the geometric mean over its
            active tokens (GSPO); "sequence_token", the value of that with the gradient of the
            token's own (GSPO-token). None: "sequence" for gspo, luspo and gmpo, else "token".
            gspo has no "token", gmpo only "sequence"; dppo, reinforce and the covariance losses
            only "token"; vespo takes None.
        beta: weight of the KL term.
        kl_estimator: of x = ref_logprob − logprob: "k1" −x, "abs" |x|, "k2" x²/2, "k3" eˣ − x − 1,
            "low_var" k3 up to 10, "k3+" the value of k3 with the gradient of k2.
        use_bias_correction_kl: KL_t times the ratio (DeepSeek-V3.2), gradient included: of the
            token for vespo, else at importance_sampling_level.
        entropy: [T] of the policy's distributions, in nats; required with ``entropy_coef``.
        entropy_coef: weight of the entropy bonus, a mean over active tokens for every loss type.
        rollout_correction: c_t = e^(old − sampling) of the "token_…" or of its "sequence_…" (the
            product), "…_truncate": cut to [rollout_clip_min, rollout_clip_max], "…_mask": 0
            outside. Multiplies L and not KL (for gmpo too, where verl takes a geometric mean);
            vespo takes it into its sum instead, of tokens only.
        rollout_clip_min, rollout_clip_max: default 0 and 3; infinite for no upper bound.
        off_policy_mask_threshold: c_t = 0 where A < 0 and the mean of sampling (or else old) −
            logprob over the sequence is above it (DeepSeek-V3.2).
        num_active_tokens: of the whole optimizer step, a number or 0-d tensor (default: of this
            call). It and num_sequences may be 0 only where no token is active.
        num_sequences: of the whole optimizer step, a number or 0-d tensor (default: B). Sequences
            without an active token count too.
        max_completion_length: in tokens, required for "dr_grpo".
        options: a ``PolicyLossOptions``, in place of
        keywords: its fields, which are the options above of the loss type, None for the default,
            and loss_type, importance_sampling_level, beta, kl_estimator, use_bias_correction_kl,
            entropy_coef, rollout_correction, rollout_clip_min, rollout_clip_max,
            off_policy_mask_threshold and max_completion_length.

    Returns:
        ``PolicyLoss(loss, metrics)``. Metrics: policy_loss (Σ w·c·L), clip_fraction (active tokens
        whose gradient a bound cuts or caps), ratio_mean, ratio_max (at the level of the ratio; of
        the tokens for vespo), active_tokens; kl with ref_logprob; entropy with entropy;
        sampling_delta_mean and sampling_delta_max (of |old_logprob − sampling_logprob|) with
        sampling_logprob; rollout_weight_mean with rollout_correction; off_policy_fraction (of the
        tokens, masked) with off_policy_mask_threshold.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came. So does every
            option, level or correction that means nothing for the loss type.
    """
    o = options_of_call(NAME, options, _options, keywords)
    _check(
        logprob, cu_seqlens, old_logprob, ref_logprob, sampling_logprob, entropy, mask, o.beta,
        o.entropy_coef, o.rollout_correction, o.off_policy_mask_threshold,
        o.use_bias_correction_kl, advantages, rewards, group_ids, scale_rewards, baseline,
    )  # fmt: skip
    inputs.look_at_sequences(NAME, cu_seqlens, logprob.shape[0], "logprob")
    loss, sequences = LOSSES[o.loss_type], cu_seqlens.shape[0] - 1
    given = inputs.advantages_or_rewards(NAME, advantages, rewards, group_ids)
    covariance_based = o.loss_type in ("clip_cov", "kl_cov")
    if group_ids is not None and (covariance_based or baseline == "opo"):
        rows = logprob.shape[0]
        given = inputs.advantages_of_groups(
            given, group_ids, scale_rewards, baseline, cu_seqlens, rows, mask
        )
        group_ids = None
    selected = None
    if covariance_based:
        by_row = given
        if given.shape[0] == sequences:
            by_row = given[Sequences(cu_seqlens, logprob.shape[0]).of_row]
        selected = covariance.select(o.loss_type, o.of_loss, logprob, old_logprob, by_row, mask)

    tokens = _of_step("num_active_tokens", num_active_tokens, logprob)
    of_step = _of_step("num_sequences", num_sequences, logprob)
    denominator: Any = tokens
    if loss.average == "local_tokens":
        denominator = None
    elif loss.average == "sequence_means":
        denominator = of_step
    elif loss.average in ("sequence_sums", "max_length"):
        denominator = logprob.new_full((), sequences) if of_step is None else of_step
    if loss.average == "max_length":
        denominator = denominator * o.max_completion_length

    arguments = Arguments(
        logprob=logprob,
        advantages=given,
        cu_seqlens=cu_seqlens,
        group_ids=group_ids,
        old_logprob=old_logprob,
        ref_logprob=ref_logprob,
        sampling_logprob=sampling_logprob,
        mask=mask,
        selected=selected,
        entropy=entropy,
        denominator=denominator,
        num_active_tokens=tokens,
        surrogate=loss.surrogate,
        options=o.of_surrogate,
        level=o.level,
        sequence_mean=loss.average == "sequence_means",
        beta=o.beta,
        kl_estimator=KL_ESTIMATORS[o.kl_estimator],
        use_bias_correction_kl=o.use_bias_correction_kl,
        entropy_coef=o.entropy_coef,
        rollout_correction=o.rollout_correction or "none",
        rollout_clip_min=o.rollout_bounds[0],
        rollout_clip_max=o.rollout_bounds[1],
        off_policy_mask_threshold=(
            math.inf if o.off_policy_mask_threshold is None else o.off_policy_mask_threshold
        ),
        scale=scale_rewards,
        baseline=baseline,
        eps=ADVANTAGE_EPS,
    )
    value, _, _, vector = POLICY_LOSS(*arguments)
    absent = {
        "kl": ref_logprob is None,
        "entropy": entropy is None,
        "sampling_delta_mean": sampling_logprob is None,
        "sampling_delta_max": sampling_logprob is None,
        "rollout_weight_mean": o.rollout_correction is None,
        "off_policy_fraction": o.off_policy_mask_threshold is None,
    }
    metrics = zip(METRICS, vector.detach().unbind(), strict=True)
    return PolicyLoss(value, {key: metric for key, metric in metrics if not absent.get(key)})


@remembered
def _options(**keywords: Any) -> PolicyLossOptions:
    check.known_options(NAME, keywords, KEYWORDS)
    with check.on_behalf_of(NAME):
        return PolicyLossOptions(**keywords)


@remembered
def _check(
    logprob: Tensor,
    cu_seqlens: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    sampling_logprob: Tensor | None,
    entropy: Tensor | None,
    mask: Tensor | None,
    beta: float,
    entropy_coef: float,
    rollout_correction: str | None,
    off_policy_mask_threshold: float | None,
    use_bias_correction_kl: bool,
    advantages: Tensor | None,
    rewards: Tensor | None,
    group_ids: Tensor | None,
    scale_rewards: str,
    baseline: str,
) -> None:
    shapes = check.Shapes(NAME, check.PACK)
    shapes("logprob", logprob, "T", inputs.FLOATS)
    inputs.sequences(shapes, cu_seqlens)
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
    if beta != 0:
        inputs.needed(NAME, "ref_logprob", ref_logprob, "beta is not 0")
    if entropy_coef != 0:
        inputs.needed(NAME, "entropy", entropy, "entropy_coef is not 0")
    if rollout_correction is not None:
        inputs.needed(NAME, "sampling_logprob", sampling_logprob, "rollout_correction is given")
    if off_policy_mask_threshold is not None and old_logprob is None:
        why = "off_policy_mask_threshold is given without old_logprob"
        inputs.needed(NAME, "sampling_logprob", sampling_logprob, why)
    if use_bias_correction_kl and ref_logprob is None:
        raise ValueError(
            f"{NAME}: use_bias_correction_kl: expected False as long as there is no ref_logprob; "
            "got True"
        )
    inputs.check_advantage_inputs(
        shapes, advantages, rewards, group_ids, scale_rewards, baseline, (logprob.dtype,)
    )


KEYWORDS = (*inspect.signature(policy_loss).parameters, *LossOptions.__annotations__)


def _of_step(name: str, count: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A count of a whole optimizer step, 0-d."""
    if count is None:
        return None
    if isinstance(count, Tensor):
        if count.numel() != 1:
            raise ValueError(
                f"{NAME}: {name}: expected a number or a 0-d tensor, got {check.described(count)}"
            )
        return count.reshape(()).to(like)
    if check.number(NAME, name, count) < 0:
        raise ValueError(f"{NAME}: {name}: expected 0 or more, got {count}")
    return torch.full((), count, dtype=like.dtype, device=like.device)


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = Arguments(*args)
    return (
        a.logprob.new_empty(()),
        a.logprob.new_empty(a.logprob.shape),
        a.logprob.new_empty(0 if a.entropy is None else a.logprob.shape[0]),
        a.logprob.new_empty(len(METRICS)),
    )


def _validate(*args: Any) -> None:
    a = Arguments(*args)
    check.cumulative(NAME, "cu_seqlens", a.cu_seqlens, a.logprob.shape[0])
    if a.group_ids is not None:
        check.finite(NAME, "rewards", a.advantages)
    if a.logprob.shape[0] == 0 or (a.mask is not None and not a.mask.any()):
        return  # nothing is divided
    for name, total in (
        ("num_active_tokens", a.num_active_tokens),
        ("num_sequences, max_completion_length", a.denominator),
    ):
        if total is not None and not 0 < float(total) < math.inf:
            raise ValueError(
                f"{NAME}: {name}: expected a finite number above 0, since there are active tokens; "
                f"got {float(total)}"
            )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad, grad_entropy, metrics = output
    ctx.mark_non_differentiable(grad, grad_entropy, metrics)
    ctx.save_for_backward(grad, grad_entropy)


def _backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Any, ...]:
    grad, grad_entropy = ctx.saved_tensors
    needed = POLICY_LOSS.needed(ctx)
    return POLICY_LOSS.gradients(
        logprob=dloss * grad, entropy=dloss * grad_entropy if needed.entropy else None
    )


POLICY_LOSS = Op(
    "policy_loss(Tensor logprob, Tensor advantages, Tensor cu_seqlens, Tensor? group_ids, "
    "Tensor? old_logprob, Tensor? ref_logprob, Tensor? sampling_logprob, Tensor? mask, "
    "Tensor? selected, Tensor? entropy, Tensor? denominator, Tensor? num_active_tokens, "
    "str surrogate, float[] options, str level, bool sequence_mean, float beta, "
    "str kl_estimator, bool use_bias_correction_kl, float entropy_coef, str rollout_correction, "
    "float rollout_clip_min, float rollout_clip_max, float off_policy_mask_threshold, "
    "str scale, str baseline, float eps) "
    "-> (Tensor loss, Tensor grad_logprob, Tensor grad_entropy, Tensor metrics)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.policy.triton.policy_loss",
)
