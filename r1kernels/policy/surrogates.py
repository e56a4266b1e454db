"""The per-token algebra of every loss and KL estimator, written once.

PyTorch runs these functions as they stand, on [T] vectors and 0-d options. Triton compiles them
from this source, with the imported names bound to its own, and the build translates this file into
the C++ header of the CPU kernel (``csrc/cpu/policy/surrogates_header.py``). So each is a straight
line of arithmetic, comparisons inside ``where``, and the imported names: no branch, no attribute,
no keyword. Nothing here is differentiated by autograd: the derivatives are returned.

A surrogate takes five values of a token, and then the loss's own options:

- ``logprob`` ℓ, ``old_logprob`` o, and ``log_ratio`` x, which is ℓ − o of the token, or the mean or
  sum of that over its sequence; the ratio is r = eˣ;
- ``advantage`` A, and ``selected``: 1 where a covariance picked the token, else 0.

It returns the loss L, ∂L/∂x, ∂L/∂ℓ with x held fixed (all that is left where the ratio is a stopped
gradient), and 1 where a bound cuts or caps the gradient of the token, else 0. sg: stopped gradient.
"""

from __future__ import annotations

from torch import exp, log, maximum, minimum, sigmoid, where


def times(slope, logprob):
    """slope·ℓ, which is 0 where the slope is, of a token that has no probability too; NaN stays."""
    product = slope * logprob
    return where(slope == 0.0, where(logprob < -1e30, 0.0, product), product)


def ppo(
    logprob, old_logprob, log_ratio, advantage, selected,
    epsilon, epsilon_high, delta, clip_ratio_c,
):  # fmt: skip
    """L = −min(min(r, δ)·A, clip(r, 1 − ε, 1 + ε_high)·A), and not above −c·A where A < 0.

    PPO; δ of INTELLECT-2 and the dual clip c may be infinite. Selected tokens are left out.
    """
    ratio = exp(log_ratio)
    a = advantage * (1.0 - selected)
    inside = minimum(maximum(ratio, 1.0 - epsilon), 1.0 + epsilon_high)
    free = minimum(ratio, delta) * a
    bounded = inside * a
    least = minimum(free, bounded)
    floor = where(a < 0.0, clip_ratio_c * a, least)
    slope = where(
        free <= bounded, where(ratio <= delta, 1.0, 0.0), where(inside == ratio, 1.0, 0.0)
    )
    slope = where(least < floor, 0.0, slope) * (1.0 - selected)
    clipped = where(advantage == 0.0, 0.0, 1.0 - slope)
    return -maximum(least, floor), -a * ratio * slope, 0.0, clipped


def cispo(logprob, old_logprob, log_ratio, advantage, selected, epsilon_high):
    """L = −sg(min(r, ε_high))·A·ℓ: the cap is ε_high itself (ScaleRL's and TRL's CISPO)."""
    ratio = exp(log_ratio)
    slope = -minimum(ratio, epsilon_high) * advantage
    clipped = where(advantage == 0.0, 0.0, where(ratio > epsilon_high, 1.0, 0.0))
    return times(slope, logprob), 0.0, slope, clipped


def cispo_clip(logprob, old_logprob, log_ratio, advantage, selected, epsilon, epsilon_high):
    """L = −sg(clip(r, 1 − ε, 1 + ε_high))·A·ℓ  (MiniMax-M1; verl's CISPO)."""
    ratio = exp(log_ratio)
    inside = minimum(maximum(ratio, 1.0 - epsilon), 1.0 + epsilon_high)
    slope = -inside * advantage
    clipped = where(advantage == 0.0, 0.0, where(inside == ratio, 0.0, 1.0))
    return times(slope, logprob), 0.0, slope, clipped


def sapo(
    logprob, old_logprob, log_ratio, advantage, selected,
    sapo_temperature_pos, sapo_temperature_neg,
):  # fmt: skip
    """L = −A·(4/τ)·σ(τ·(r − 1)), τ by the sign of A: a gate instead of a clip."""
    ratio = exp(log_ratio)
    temperature = where(advantage > 0.0, sapo_temperature_pos, sapo_temperature_neg)
    gate = sigmoid(temperature * (ratio - 1.0))
    shut = sigmoid(temperature * (1.0 - ratio))
    return -4.0 * advantage * gate / temperature, -4.0 * advantage * gate * shut * ratio, 0.0, 0.0


def vespo(
    logprob, old_logprob, log_ratio, advantage, selected,
    vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg,
):  # fmt: skip
    """L = −sg(φ)·A·ℓ with φ = e^(λ + k·x − λ·eˣ) of the sequence; k, λ by the sign of A."""
    k = where(advantage >= 0.0, vespo_k_pos, vespo_k_neg)
    decay = where(advantage >= 0.0, vespo_lambda_pos, vespo_lambda_neg)
    slope = -exp(decay + k * log_ratio - decay * exp(log_ratio)) * advantage
    return times(slope, logprob), 0.0, slope, 0.0


def gmpo(logprob, old_logprob, log_ratio, advantage, selected, epsilon, epsilon_high):
    """L = −A·r of the sequence, whose tokens' log ratios ``gmpo_log_ratio`` has clipped."""
    value = -advantage * exp(log_ratio)
    return value, value, 0.0, 0.0


def gmpo_log_ratio(log_ratio, advantage, epsilon, epsilon_high):
    """A token's ℓ − o, bounded on the side where its ratio helps: (value, derivative)."""
    bounded = where(advantage > 0.0, minimum(log_ratio, epsilon_high), maximum(log_ratio, -epsilon))
    return bounded, where(bounded == log_ratio, 1.0, 0.0)


def dppo_tv(
    logprob, old_logprob, log_ratio, advantage, selected,
    epsilon, epsilon_high, clip_ratio_c,
):  # fmt: skip
    """L = −sg(min(r, c))·A·ℓ where p has moved by no more than ε, else 0  (DPPO, binary TV)."""
    ratio = exp(log_ratio)
    moved = exp(logprob) - exp(old_logprob)
    beyond = where(advantage > 0.0, moved - epsilon_high, -epsilon - moved)
    slope = where(beyond > 0.0, 0.0, -minimum(ratio, clip_ratio_c) * advantage)
    cut = where(beyond > 0.0, 1.0, where(ratio > clip_ratio_c, 1.0, 0.0))
    return times(slope, logprob), 0.0, slope, where(advantage == 0.0, 0.0, cut)


def dppo_kl(
    logprob, old_logprob, log_ratio, advantage, selected,
    epsilon, epsilon_high, clip_ratio_c,
):  # fmt: skip
    """As dppo_tv with the binary KL of p from p_old; inward moves are always kept."""
    ratio = exp(log_ratio)
    p = exp(logprob)
    p_old = exp(old_logprob)
    rest = where(p < 1.0, 1.0 - p, 0.0) + 1e-8
    rest_old = where(p_old < 1.0, 1.0 - p_old, 0.0) + 1e-8
    divergence = -p_old * log_ratio + (1.0 - p_old) * log(rest_old / rest)
    outward = where(advantage > 0.0, p - p_old, p_old - p)
    bound = where(advantage > 0.0, epsilon_high, epsilon)
    beyond = where(outward > 0.0, divergence - bound, 0.0)
    slope = where(beyond > 0.0, 0.0, -minimum(ratio, clip_ratio_c) * advantage)
    cut = where(beyond > 0.0, 1.0, where(ratio > clip_ratio_c, 1.0, 0.0))
    return times(slope, logprob), 0.0, slope, where(advantage == 0.0, 0.0, cut)


def reinforce(logprob, old_logprob, log_ratio, advantage, selected):
    """L = −A·ℓ: the plain policy gradient, no ratio."""
    return times(-advantage, logprob), 0.0, -advantage, 0.0


def kl_cov(logprob, old_logprob, log_ratio, advantage, selected, ppo_kl_coef):
    """L = −A·r, and + κ·|x| where selected  (KL-Cov)."""
    value = -advantage * exp(log_ratio)
    pull = ppo_kl_coef * selected
    away = where(log_ratio > 0.0, pull, where(log_ratio < 0.0, -pull, 0.0))
    return value + away * log_ratio, value + away, 0.0, 0.0


# KL(policy ‖ reference) of a token from x = f − ℓ: (value, ∂value/∂ℓ)  (Schulman, 2020).


def k1(x):
    return -x, 1.0


def absolute(x):
    slope = where(x > 0.0, -1.0, where(x < 0.0, 1.0, 0.0))
    return -slope * x, slope


def k2(x):
    return 0.5 * x * x, -x


def k3(x):
    """eˣ − x − 1, by its series near zero, where the difference would cancel."""
    s = 1 / 40320 + x * (1 / 362880 + x * (1 / 3628800 + x * (1 / 39916800 + x * (1 / 479001600))))
    s = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040 + x * s)))
    series = x * x * (1 / 2 + x * (1 / 6 + x * s))
    value = where(x * x < 0.1, series, exp(x) - x - 1.0)
    return value, -value - x


def low_var(x):
    """k3, not above 10."""
    value, slope = k3(x)
    return where(value > 10.0, 10.0, value), where(value > 10.0, 0.0, slope)


def k3_plus(x):
    """The value of k3 with the gradient of k2, whose expectation is that of the KL itself."""
    value, _ = k3(x)
    return value, -x
