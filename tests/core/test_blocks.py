"""Large outputs of the C++ kernels lie in blocks, which stay for the next call when freed."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.core import native

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
    assert first.eq(1).all()
    assert view.eq(2).all()
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
    assert gradient is not None
    assert gradient.nbytes >= 4 * MIB
    torch.save(gradient, tmp_path / "gradient.pt")
    assert torch.equal(torch.load(tmp_path / "gradient.pt", weights_only=True), gradient)
    expected = gradient.clone()
    assert torch.equal(gradient.share_memory_(), expected)
    assert torch.equal(torch.from_numpy(gradient.numpy()), expected)


FORKS = """
import os, signal, threading, torch, r1kernels
torch.set_num_threads(1)
weight, rows = torch.ones(1024), torch.ones(1024, 1024)
def work():
    while True:
        r1kernels.rms_norm(rows, weight, eps=1e-6)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it, if it hangs
        r1kernels.rms_norm(rows, weight, eps=1e-6)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        os._exit(1)
os._exit(0)
"""


def test_a_child_forked_while_a_thread_takes_a_block_can_take_one() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=100)


def resident() -> int:
    """Bytes; not of /proc/self/status, which is off by what each core has yet to report."""
    found = re.search(
        r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024
