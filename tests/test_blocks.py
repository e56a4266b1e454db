"""Large outputs of the C++ kernels lie in blocks, which stay for the next call when they are freed."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import native

MIB = 1 << 20

pytestmark = pytest.mark.skipif(native.load("cpp") is not None, reason=str(native.load("cpp")))


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    gc.collect()
    torch.ops.r1_cpp.empty_cache()
    yield
    torch.ops.r1_cpp.empty_cache()


def output(mib: int, value: float = 1.0) -> Tensor:
    """Of rms_norm, that large: ``value`` everywhere."""
    rows = torch.ones(mib * MIB // 4096, 1024)
    return r1kernels.rms_norm(rows, torch.full((1024,), value), eps=1e-30)


def test_a_block_comes_back_to_the_next_call() -> None:
    first = output(8)
    place = first.data_ptr()
    del first
    assert output(8).data_ptr() == place
    assert output(6).data_ptr() == place  # a smaller one, in the same memory


def test_a_block_much_too_large_is_left_for_others() -> None:
    first = output(24)
    place = first.data_ptr()
    del first
    assert output(8).data_ptr() != place


def test_what_is_alive_is_nobody_elses() -> None:
    first, view = output(8, 1.0), output(8, 2.0)[5:]
    others = [output(8, 0.0) for _ in range(3)]
    assert first.eq(1).all() and view.eq(2).all()
    assert len({t.untyped_storage().data_ptr() for t in (first, view, *others)}) == 5


def test_empty_cache_gives_the_memory_back() -> None:
    output(64)
    before = resident()
    torch.ops.r1_cpp.empty_cache()
    assert before - resident() == pytest.approx(64 * MIB, abs=4 * MIB)


def test_a_gradient_in_a_block_is_a_tensor_like_any(tmp_path: Path) -> None:
    hidden, weight = torch.randn(64, 256), torch.randn(8192, 256, requires_grad=True)
    target = torch.randint(8192, (64,))
    r1kernels.linear_cross_entropy(hidden, weight, target).backward()
    gradient = weight.grad
    assert gradient is not None and gradient.nbytes >= 4 * MIB
    torch.save(gradient, tmp_path / "gradient.pt")
    assert torch.equal(torch.load(tmp_path / "gradient.pt", weights_only=True), gradient)
    expected = gradient.clone()
    assert torch.equal(gradient.share_memory_(), expected)
    assert torch.equal(torch.from_numpy(gradient.numpy()), expected)


def resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
