"""How much memory a head may keep between its forward and its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.head.linear_logprob_op import TILE_ROWS, tile_row_bytes

# Where nothing else is said. On a CPU this much always, and more while it is a small part of the
# memory that is free; a GPU's driver takes long to say what is free there.
KEPT_BYTES = 56 << 20
SHARE_OF_AVAILABLE = 1 / 8
CUDA_KEPT_BYTES = 2560 << 20  # 8192 rows of a vocabulary of 151,936 in bfloat16 fit

_LIMIT: list[int] = []
_CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def kept_memory(limit: int) -> Iterator[None]:
    """Let heads keep at most ``limit`` bytes a call, in the whole process, until the block ends.

    A backward pass has a quarter less to compute for rows whose unnormalised probabilities the
    forward pass kept. By default a CPU keeps what fits in an eighth of the memory that is available
    (to the machine, and to the control group of the process), 56 MiB at least, and a GPU 2560 MiB.
    How much is kept decides time and memory, and not one bit of a result.

    >>> with r1kernels.kept_memory(0):  # the least memory
    ...     loss = r1kernels.linear_cross_entropy(hidden, weight, target)

    Args:
        limit: bytes, 0 or more, for each call of a function with a linear head.

    Raises:
        ValueError, TypeError: limit is no such number.
    """
    check.count("kept_memory", "limit", limit, least=0)
    _LIMIT.append(limit)
    try:
        yield
    finally:
        _LIMIT.pop()


def rows_that_fit(hidden: Tensor, weight: Tensor, matrices: int = 1) -> int:
    """How many rows of probabilities, or of as many ``matrices``, may be kept: a multiple of
    TILE_ROWS."""
    tile_row = matrices * tile_row_bytes(hidden, weight)
    wanted = -(-hidden.shape[0] // TILE_ROWS)
    if _LIMIT:
        most = _LIMIT[-1]
    elif hidden.is_cuda:
        most = CUDA_KEPT_BYTES
    else:
        most = KEPT_BYTES
        # A graph that is traced must not hold what was free when it was.
        if not torch.compiler.is_compiling() and wanted * tile_row > most:
            most = max(most, int(SHARE_OF_AVAILABLE * available()))
    return TILE_ROWS * min(wanted, most // tile_row)


def available() -> int:
    """Bytes that this process may still take without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return int(min(next(found, 0), *(max(_left(group), 0) for group in _control_groups())))


def _control_groups() -> Iterator[Path]:
    """Folders of the control groups that limit this process's memory, and of their parents."""
    yield from (_CGROUPS, _CGROUPS / "memory")  # the mount is a container's own group
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = _CGROUPS / controllers / path.lstrip("/")
            yield from (group, *(parent for parent in group.parents if parent > _CGROUPS))


def _left(group: Path) -> float:
    """Bytes below the limit of a control group: version 2's files, or version 1's."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, used = ((group / name).read_text().strip() for name in (limit, usage))
        except OSError:
            continue
        if most != "max":
            return int(most) - int(used)
    return inf
