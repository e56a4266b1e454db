"""Extra peak memory of a call: what it needs above its inputs.

On the CPU this is the high-water mark of resident memory, so it counts whatever the call touches:
tensors, scratch that a C++ kernel or a BLAS takes with malloc, packing buffers. Two things make it
repeatable to about 0.3 MiB: glibc is told to hand freed blocks back to the system at once, as the
C++ kernels do theirs (``empty_cache``), and the kernel's mark is reset before the call. On CUDA it
is the caching allocator's own peak.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from r1kernels.core import native

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MMAP_BYTES = 64 << 10


class Memory(NamedTuple):
    """Bytes above the inputs: at the peak, and those of them that the call returns."""

    peak: int
    returned: int

    @property
    def scratch(self) -> int:
        """The peak without what the call returns (its outputs and gradients)."""
        return max(self.peak - self.returned, 0)


def extra_peak(build: Callable[..., Callable[[], Any]], *args: Any, device: str = "cpu") -> Memory:
    """Measure the call ``build(*args)()`` after one warm-up; tensors that it returns are counted.

    On the CPU it runs in a process kept for this, because how malloc behaves cannot be restored:
    ``build`` and ``args`` must be picklable.
    """
    if device == "cuda":
        return _cuda_peak(build(*args))
    return _process().submit(_cpu_peak, build, args).result()


@cache
def _process() -> ProcessPoolExecutor:
    threads = torch.get_num_threads()
    return ProcessPoolExecutor(1, get_context("spawn"), _give_freed_memory_back, (threads,))


def _give_freed_memory_back(threads: int) -> None:
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.mallopt(M_ARENA_MAX, 1)


def _cuda_peak(call: Callable[[], Any]) -> Memory:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    returned = _bytes(call())
    torch.cuda.synchronize()
    return Memory(torch.cuda.max_memory_allocated() - before, returned)


def _cpu_peak(build: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> Memory:
    call = build(*args)
    call()
    gc.collect()
    if native.load("cpp") is None:
        torch.ops.r1_cpp.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    before = _status("VmHWM")
    returned = _bytes(call())
    return Memory(_status("VmHWM") - before, returned)


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux only")
    return int(found[1]) * 1024


def _bytes(outputs: Any) -> int:
    storages = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
        for leaf in tree_leaves(outputs)
        if isinstance(leaf, torch.Tensor)
    }
    return sum(storages.values())
