"""Memory that decoding writes in place, and how much of it there is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from r1kernels.hf import routers
from r1train.config.schema import RunError

SHARE = 0.25
"""Of all memory, where no bound is given; of what is free, it would depend on who else is there."""
PREFILL_SHARE = 0.25
"""Of what decoding may take, for prompts on their way through the model; at least one goes."""
LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of a container's memory: a number of bytes where there is one. Cgroups of version 2, and of 1."""
MEMINFO, STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


class Workspace:
    """Tensors by name that keep their addresses, so that captured graphs may use them again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[str, Tensor] = {}
        self.moves = 0
        """How often one was allocated: a graph captured before that is stale."""

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape; what an earlier one of the name held is lost.

        Values are finite, if those of before were: what is masked is multiplied by zero.
        """
        count = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < count:
            self.buffers.pop(name, None)  # before the new one needs room
            buffer = self.buffers[name] = torch.zeros(count, dtype=dtype, device=self.device)
            self.moves += 1
        return buffer[:count].view(*shape)

    def room(self) -> int:
        """Bytes that it holds, or may have beside them: about what is free on its device."""
        return free_memory_of(self.device) + sum(each.nbytes for each in self.buffers.values())


def memory_of(device: torch.device) -> int:
    """Bytes that `device` has, free or not; on a CPU, that this process may have of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [path.read_text().strip() for path in LIMITS if path.exists()]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([pages, *(int(limit) for limit in limits if limit.isdigit())])


def free_memory_of(device: torch.device) -> int:
    """Bytes that nobody has taken, about; those count that PyTorch has and no tensor."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if not MEMINFO.exists():  # it is Linux that says
        return memory_of(device)
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    resident = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return min(int(lines["MemAvailable"].split()[0]) << 10, memory_of(device) - resident)


def bytes_of_pass(model: PreTrainedModel) -> int:
    """What a pass through `model` holds at one time for each token, about and at most.

    That is what the products of its widest layer read and write, of each expert that a token has,
    though not all of it is there together: norms, gates and positions are what takes its place.
    """
    experts = max((router.top_k for router in routers(model)), default=1)
    modules: Iterable[nn.Module] = model.modules()
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]

    def width(module: nn.Module) -> int:
        weights = [each for each in module.parameters() if each.dim() > 1]
        return sum(sum(w.shape[-2:]) * (experts if w.dim() == 3 else 1) for w in weights)

    widest = max(map(width, layers), default=0) or width(model.base_model)
    return widest * model.dtype.itemsize


def rows_that_fit(
    bytes_per_row: int, batch_size: int, bound: int, beside: int, of_length: int
) -> int:
    """How many completions are decoded at the same time, at most `batch_size`.

    Args:
        beside: bytes that are needed however many there are.
        of_length: of `bytes_per_row`, those that a shorter completion would not need.

    Raises:
        RunError: not even one fits.
    """
    rows = min(batch_size, (bound - beside) // bytes_per_row)
    if rows < 1:
        needed = bytes_per_row + beside
        least = needed - of_length
        remedy = "lower rollout.max_completion_length" if least < bound else "shorten the prompts"
        raise RunError(
            f"one completion needs {needed / 2**30:.3g} GiB to be decoded, {least / 2**30:.3g} of "
            f"them for its prompt and logits, and there are {bound / 2**30:.3g}: raise "
            f"rollout.max_memory_gib, or {remedy}"
        )
    return rows
