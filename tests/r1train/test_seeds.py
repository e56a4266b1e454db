"""Settings that make a run repeat, and that are put back."""

import os

import pytest
import torch

from r1train.seeds import derive_seed, deterministic


def test_every_purpose_has_a_seed_of_its_own():
    seeds = {derive_seed(0, "rollout", 1), derive_seed(0, "rollout", 2), derive_seed(1, "eval")}
    assert len(seeds) == 3
    assert derive_seed(0, "rollout", 1) in seeds


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_deterministic_has_a_number_of_threads_and_puts_it_back():
    before = torch.get_num_threads()
    with deterministic(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with deterministic():
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("cuda", [False, True])
def test_deterministic_is_strict_without_cuda_and_puts_everything_back(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic():
        assert settings() == (True, cuda, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert settings() == before


def test_a_workspace_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
