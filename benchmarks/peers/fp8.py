"""What an FP8 linear layer replaces: bf16, PyTorch's own FP8 product, and the recipe by hand."""

from __future__ import annotations

from benchmarks import fp8_tasks
from benchmarks.peers.adapt import Peer

PEERS = tuple(Peer(name, {"linear": run}) for name, run in fp8_tasks.PEERS.items())
