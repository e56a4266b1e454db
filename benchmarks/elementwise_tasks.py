"""The tasks of what stands between a model's products: norms, rotations, gates; and a whole model.

Each is a forward pass and the backward pass of everything that it was given, as in training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import r1kernels
from benchmarks.train_tasks import made, take_gradients


class Task(NamedTuple):
    """``inputs``: (x, weight, residual), (q, k) or (gate, up), by kind; or a model's parameters."""

    inputs: tuple[Tensor, ...]
    tables: tuple[Tensor, ...] = ()  # cosines and sines of the positions
    upstreams: tuple[Tensor, ...] = ()
    model: Any = None
    ids: Any = None
    upstream: Tensor | None = None

    def through(self, run: Callable[..., Any]) -> tuple[Tensor, ...]:
        """What ``run`` makes of the inputs, and their gradients."""
        found = run(*self.inputs, *self.tables)
        outputs = found if isinstance(found, tuple) else (found,)
        gradients = torch.autograd.grad(outputs, self.inputs, self.upstreams)
        return *(output.detach() for output in outputs), *gradients


Run = Callable[[Task], tuple[Tensor, ...]]


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``.

    shape: (T, H) of a norm, (T, I) of a gate, (B, S, Hq, Hk, D) of a rotation, (B, S) of a model.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    model: str = ""
    dtype: torch.dtype = torch.bfloat16
    peers: tuple[str, ...] | None = None
    yardstick: str = "eager"
    flops: float = 0.0  # it is bytes that count

    def describe(self) -> str:
        return f"{self.name}: {' × '.join(map(str, self.shape))}"

    @property
    def bytes(self) -> float:
        """Least traffic: what is read and written, forward and backward."""
        size = torch.Size(self.shape).numel()
        if self.kind == "rotate":
            batch, length, queries, keys, width = self.shape
            size = batch * length * (queries + keys) * width
        passes = {"norm": 4 + 4, "gate": 3 + 5, "rotate": 2 + 2, "layers": 0}[self.kind]
        return float(passes * self.dtype.itemsize * size)

    @property
    def exact_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        if self.kind == "layers":
            model = made(self.model, self.dtype).to(device, dtype or self.dtype)
            rng = torch.Generator().manual_seed(0)
            ids = torch.randint(model.config.vocab_size, self.shape, generator=rng).to(device)
            return Task(tuple(model.parameters()), model=model, ids=ids)
        rng = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=rng, device=device)
            return values.to(self.dtype).to(dtype or self.dtype)

        tables: tuple[Tensor, ...] = ()
        if self.kind == "rotate":
            batch, length, queries, keys, width = self.shape
            outputs = [normal(batch, length, heads, width) for heads in (queries, keys) * 2]
            *inputs, first, second = (x.transpose(1, 2) for x in outputs)
            angle = torch.rand(1, length, width // 2, generator=rng, device=device) * 6
            angle = torch.cat([angle, angle], -1)
            tables = angle.cos().to(first.dtype), angle.sin().to(first.dtype)
            upstreams = (first, second)
        elif self.kind == "norm":
            inputs = [normal(*self.shape), normal(self.shape[1]), normal(*self.shape)]
            upstreams = (normal(*self.shape), normal(*self.shape))
        else:
            inputs = [normal(*self.shape), normal(*self.shape)]
            upstreams = (normal(*self.shape),)
        return Task(tuple(x.detach().requires_grad_() for x in inputs), tables, upstreams)


def layers(task: Task, patched: Callable[[Any], Any]) -> tuple[Tensor, ...]:
    """The loss of a patched copy of the model, and the gradients of its parameters."""
    key = patched.__qualname__
    if key not in vars(task.model):
        vars(task.model)[key] = patched(copy.deepcopy(task.model))
    model = vars(task.model)[key]
    loss = model(task.ids, labels=task.ids, use_cache=False).loss
    loss.backward()
    return loss.detach(), *take_gradients(model)


def fused(model: Any) -> Any:
    from r1kernels import hf

    return hf.patch(model, elementwise=True)


def head_alone(model: Any) -> Any:
    from r1kernels import hf

    return hf.patch(model)


def unpatched(model: Any) -> Any:
    return model


OURS: dict[str, Run] = {
    "norm": lambda task: task.through(r1kernels.rms_norm),
    "rotate": lambda task: task.through(r1kernels.rope),
    "gate": lambda task: task.through(r1kernels.swiglu),
    "layers": lambda task: layers(task, fused),
}
