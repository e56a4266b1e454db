"""Random numbers that need no state: each is a hash of a seed, a completion and a token.

So a completion does not depend on who shares its batch, and no table of them is ever kept. The hash
is SplitMix64 (Steele, Lea and Flood 2014), whose output passes the usual batteries of tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = (1 << 64) - 1
WEYL = 0x9E3779B97F4A7C15
FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def signed(number: int) -> int:
    """The int64 with the last 64 bits of `number`."""
    return ((number & MASK) ^ (1 << 63)) - (1 << 63)


def stream_keys(seeds: Sequence[int], completions: Sequence[int]) -> Tensor:
    """int64 [B]: where the numbers of completion `completions[i]` of seed `seeds[i]` begin."""
    seed = torch.tensor([signed(seed) for seed in seeds], dtype=torch.int64)
    return _mixed(_mixed(seed) + _weyl(torch.tensor(list(completions), dtype=torch.int64)))


def uniform(keys: Tensor, step: int | Tensor) -> Tensor:
    """float64 [B] in [0, 1): the number for token `step` of each stream, of 53 bits."""
    bits = _shifted(_mixed(keys + _weyl(step)), 11)
    return bits.double() * 2.0**-53


def _weyl(step: int | Tensor) -> int | Tensor:
    if isinstance(step, int):
        return signed((step + 1) * WEYL)
    return (step + 1) * signed(WEYL)


def _mixed(z: Tensor) -> Tensor:
    for shift, factor in FACTORS:
        z = (z ^ _shifted(z, shift)) * signed(factor)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right without the sign, which int64 would repeat."""
    return (z >> bits) & (MASK >> bits)
