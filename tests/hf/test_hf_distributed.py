"""Patched models in the wrappers of PyTorch, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from r1kernels import hf

transformers = pytest.importorskip("transformers")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[dist.DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def patched() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    hf.patch(model)
    return model


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for g in found]


def test_distributed_data_parallel(patched: Any, mesh: dist.DeviceMesh) -> None:
    """The wrapper's forward is what synchronises gradients, so all must go through it."""
    ids = torch.randint(53, (2, 8))
    expected = gradients(patched, hf.logprobs(patched, ids).logprob.sum())
    wrapped = DistributedDataParallel(patched)
    found = gradients(patched, hf.logprobs(wrapped, ids).logprob.sum())
    torch.testing.assert_close(found, expected)


def test_fully_sharded(patched: Any, mesh: dist.DeviceMesh) -> None:
    """The head's weight is whole only inside the model's forward."""
    ids = torch.randint(53, (2, 8))
    expected = gradients(patched, patched(ids, labels=ids).loss)
    for layer in patched.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(patched, mesh=mesh)
    torch.testing.assert_close(gradients(patched, patched(ids, labels=ids).loss), expected)
