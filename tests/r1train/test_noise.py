from __future__ import annotations

import torch

from r1train.engine.noise import signed, stream_keys, uniform

KEYS = stream_keys([7] * 500 + [8] * 500, [*range(500)] * 2)


def splitmix64(state):
    """Its next output, in whole numbers, as published."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_a_stream_is_splitmix64():
    for key, found in zip(KEYS.tolist()[:20], uniform(KEYS[:20], 0).tolist(), strict=True):
        assert found == (splitmix64(key % (1 << 64)) >> 11) * 2.0**-53


def test_a_step_that_the_device_counts_gives_the_same_numbers():
    for step in (0, 5, 1 << 20):
        assert torch.equal(uniform(KEYS, torch.tensor([step])), uniform(KEYS, step))


def test_every_seed_completion_and_token_has_a_number_of_its_own():
    numbers = torch.stack([uniform(KEYS, step) for step in range(50)])
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_numbers_are_uniform_and_neighbours_have_nothing_in_common():
    numbers = torch.stack([uniform(KEYS, step) for step in range(200)])
    shares = torch.histc(numbers.float(), 100, 0, 1) / numbers.numel()
    assert (shares - 0.01).abs().max() < 6e-4  # six deviations of 200,000 draws are 1.3e-3
    centred = numbers - 0.5
    for pair in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert (pair[0] * pair[1]).mean().abs() * 12 < 0.012  # five deviations


def test_seeds_of_any_size_are_taken_modulo_two_to_the_64():
    assert signed((1 << 64) - 1) == -1
    assert torch.equal(stream_keys([3], [0]), stream_keys([3 + (1 << 64)], [0]))
