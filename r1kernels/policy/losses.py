"""The table of losses: which algebra, which average, which options, whose importance ratio.

A loss type is one row of ``LOSSES``. An option or a level that the row lacks is an error, so that
no name is accepted and then treated as another.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from r1kernels.core import check
from r1kernels.policy import surrogates

Default = float | str | None  # a number; the option whose value is taken; None: it must be given

ROW_ARGUMENTS = 5  # of a surrogate, before its options
LEVELS = ("token", "sequence", "sequence_token")
LEVELS_OF_SEQUENCES = ("sequence", "sequence_token")

CLIP: Mapping[str, Default] = {"epsilon": 0.2, "epsilon_high": "epsilon"}
PPO: Mapping[str, Default] = {**CLIP, "delta": math.inf, "clip_ratio_c": math.inf}


class Loss(NamedTuple):
    """A function of ``surrogates.py`` by name, and what surrounds it. levels: default first."""

    surrogate: str
    average: Literal["sequence_means", "sequence_sums", "local_tokens", "max_length", "tokens"]
    options: Mapping[str, Default]
    levels: tuple[str, ...] = LEVELS


# "reinforce" averages over the tokens of the step, so that every token weighs the same, as in the
# gradient of the expected reward; a mean within each sequence would favour short ones.
LOSSES = {
    "grpo": Loss("ppo", "sequence_means", PPO),
    "bnpo": Loss("ppo", "local_tokens", PPO),
    "dr_grpo": Loss("ppo", "max_length", PPO),
    "dapo": Loss("ppo", "tokens", PPO),
    "gspo": Loss("ppo", "sequence_means", PPO, LEVELS_OF_SEQUENCES),
    "luspo": Loss("ppo", "sequence_sums", PPO, (*LEVELS_OF_SEQUENCES, "token")),
    "gmpo": Loss(
        "gmpo", "sequence_means", {"epsilon": 0.4, "epsilon_high": "epsilon"}, ("sequence",)
    ),
    "cispo": Loss("cispo", "tokens", {"epsilon_high": None}),
    "cispo_clip": Loss("cispo_clip", "tokens", CLIP),
    "sapo": Loss(
        "sapo", "sequence_means", {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    ),
    "vespo": Loss(
        "vespo",
        "tokens",
        {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0},
        ("sequence_sum",),
    ),
    "dppo_tv": Loss("dppo_tv", "tokens", {**CLIP, "clip_ratio_c": 20.0}, ("token",)),
    "dppo_kl": Loss(
        "dppo_kl", "tokens", {**CLIP, "epsilon": 0.05, "clip_ratio_c": 20.0}, ("token",)
    ),
    "reinforce": Loss("reinforce", "tokens", {}, ("token",)),
    "clip_cov": Loss(
        "ppo",
        "tokens",
        {**CLIP, "clip_cov_ratio": 2e-4, "clip_cov_lb": 1.0, "clip_cov_ub": 5.0, "seed": 0},
        ("token",),
    ),
    "kl_cov": Loss("kl_cov", "tokens", {"kl_cov_ratio": 2e-4, "ppo_kl_coef": 1.0}, ("token",)),
}

# Public name → function of surrogates.py.
KL_ESTIMATORS = {
    "k1": "k1", "abs": "absolute", "k2": "k2", "k3": "k3", "low_var": "low_var", "k3+": "k3_plus",
}  # fmt: skip

ROLLOUT_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

# The options of each surrogate, in the order in which it takes them.
PARAMETERS = {
    loss.surrogate: tuple(
        inspect.signature(getattr(surrogates, loss.surrogate)).parameters
    )[ROW_ARGUMENTS:]
    for loss in LOSSES.values()
}  # fmt: skip
OPTIONS = tuple(dict.fromkeys(option for loss in LOSSES.values() for option in loss.options))
MAY_BE_ZERO = ("epsilon", "epsilon_high", "ppo_kl_coef", "clip_cov_lb", "seed")


def resolve(op: str, loss_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option of ``loss_type``; an option given as None has its default.

    Raises:
        TypeError: no loss has such an option, or it is no number.
        ValueError: this loss has not, or it is missing or out of range.
    """
    options = LOSSES[loss_type].options
    values: dict[str, Any] = {}
    check.known_options(op, given, OPTIONS)
    for option, value in given.items():
        if value is None:
            continue
        if option not in options:
            known = ", ".join(options) or "none"
            raise ValueError(
                f"{op}: {option}: {loss_type!r} has no such option, expected None or one of its "
                f"options ({known}); got {value}"
            )
        if isinstance(value, (tuple, list)) and option == "epsilon":
            raise TypeError(
                f"{op}: epsilon: expected a number, got {check.described(value)} (epsilon is the "
                "bound below 1, epsilon_high the one above)"
            )
        check.number(op, option, value, infinite=True)
        if not value >= 0 or (value == 0 and option not in MAY_BE_ZERO):
            raise ValueError(f"{op}: {option}: expected a number above 0, got {value}")
        values[option] = value
    for option, default in options.items():
        if option in values:
            continue
        if default is None:
            raise ValueError(f"{op}: {option}: expected a number for {loss_type!r}, got None")
        values[option] = values[default] if isinstance(default, str) else default
    if values.get("clip_ratio_c", math.inf) <= 1:
        raise ValueError(
            f"{op}: clip_ratio_c: expected a number above 1, got {values['clip_ratio_c']}"
        )
    return values


def parameters(surrogate: str, values: Mapping[str, Any]) -> list[float]:
    """The options of a surrogate in its order; a bound that the loss does not have is infinite."""
    return [float(values.get(name, math.inf)) for name in PARAMETERS[surrogate]]


def choose_level(op: str, loss_type: str, level: str | None) -> str:
    levels = LOSSES[loss_type].levels
    if level is None:
        return levels[0]
    check.choice(op, "importance_sampling_level", level, LEVELS)
    if level not in levels:
        known = ", ".join(name for name in levels if name in LEVELS)
        raise ValueError(
            f"{op}: importance_sampling_level: {loss_type!r} has its own ratio, expected None"
            f"{' or one of ' + known if known else ''}; got {level!r}"
        )
    return level
