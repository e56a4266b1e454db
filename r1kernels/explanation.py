"""What a call would run: found by making it on tensors without memory, and asking each op."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import r1kernels
from r1kernels.core import check
from r1kernels.core.names import nearest
from r1kernels.core.op import OPS, Op, find, is_pinned

NAMESPACE = "r1kernels"


def explain(function: Callable[..., Any] | Op | str, *args: Any, **kwargs: Any) -> str:
    """Say which implementation a call runs on and why each better one does not.

    Nothing is computed: the call is made on tensors of these shapes, dtypes and devices without
    memory. What runs in the backward pass is listed where an argument requires a gradient.

    >>> print(r1kernels.explain("group_advantage", rewards, group_ids))
    group_advantage: cpp
    >>> print(r1kernels.explain(r1kernels.moe_experts, x, gate_up, down, routing, transposed=True))
    moe_experts runs
    moe_permute: cpp
    grouped_mm: cpp (2 times)
    moe_combine: cpp

    Args:
        function: a function of r1kernels or its name, a module or a function of your own that
            calls some, or an op (``r1kernels.core.op.OPS`` has them) or its name.
        args, kwargs: what it is called with; of an op, the arguments of its schema.

    Raises:
        ValueError: no such function or op (names the nearest), or arguments that are not its own.
        TypeError, ValueError: what the call itself would raise.
    """
    if isinstance(function, Op):
        return _of_op(function, args, kwargs)
    if isinstance(function, str):
        name, found = function, _function(function)
    else:
        name, found = getattr(function, "__name__", type(function).__name__), function
        if not callable(function):
            raise ValueError(
                f"explain: function: expected a function, an op or a name, got "
                f"{check.described(function)}"
            )
    refused = "" if found is None else _refused(found, args, kwargs)
    if found is None or (refused and name in OPS and _arity(OPS[name]) == len(args)):
        return _of_op(find("explain", name), args, kwargs)
    if refused:
        raise ValueError(f"explain: {name}: expected the arguments of a call of it, {refused}")
    return _of_call(name, found, args, kwargs)


def _function(name: str) -> Callable[..., Any] | None:
    if name in OPS and name not in r1kernels.__all__:
        return None
    tools = ("checked", "explain", "using")
    functions = (each for each in r1kernels.__all__ if each.islower() and each not in tools)
    known = tuple(dict.fromkeys((*functions, *OPS)))
    if name not in known:
        raise ValueError(
            f"explain: unknown op {name!r}, expected one of: {', '.join(known)}"
            f"{nearest(name, known)}"
        )
    found: Callable[..., Any] = getattr(r1kernels, name)
    return found


def _refused(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """What Python would say to a call with these arguments, or nothing."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return f"{inspect.signature(function)}: {error}"
    return ""


def _arity(op: Op) -> int:
    return len(op.overload._schema.arguments)


def _of_op(op: Op, args: Any, kwargs: Any) -> str:
    if kwargs or len(args) != _arity(op):
        schema = str(op.overload._schema).removeprefix(f"{NAMESPACE}::")
        raise ValueError(
            f"explain: {op.name}: expected the {_arity(op)} arguments of the op {schema}, "
            f"got {len(args) + len(kwargs)}"
        )
    return _choice(op, args)


def _choice(op: Op, args: Any) -> str:
    choice = op.select(*args)
    lines = [f"{op.name}: {choice.implementation}{' (pinned)' if is_pinned(op) else ''}"]
    lines += [f"  not {name}: {reason}" for name, reason in choice.reasons.items()]
    return "\n".join(lines)


def _of_call(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    record, unfinished = _Record(), ""
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, record:
        given = pytree.tree_map_only(Tensor, partial(_without_memory, fake), (args, kwargs))
        try:
            results = function(*given[0], **given[1])
            record.found = record.backward
            _differentiate(results, given, parameters)
        except (DataDependentOutputException, DynamicOutputShapeException):
            unfinished = "what follows depends on the values of tensors"
    forward, backward = (_counted(found) for found in (record.forward, record.backward))
    if not forward and not backward:
        lines, unfinished = [f"{name}: no op of r1kernels, PyTorch's own functions"], ""
    elif not backward and len(forward) == 1 and forward[0].startswith(f"{name}:"):
        lines = forward
    else:
        lines = [f"{name} runs", *forward]
        if backward:
            lines += ["and in the backward pass", *backward]
    return "\n".join([*lines, unfinished] if unfinished else lines)


class _Record(TorchDispatchMode):
    """Asks each op that is called which backend it would run on."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.found = self.forward

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.__name__.partition(".")[0]
        if function.namespace == NAMESPACE and name in OPS:
            self.found.append(_choice(OPS[name], args))
        return function(*args, **(kwargs or {}))


def _without_memory(fake: FakeTensorMode, tensor: Tensor) -> Tensor:
    made = fake.from_tensor(tensor)
    if made.is_leaf and tensor.is_leaf and tensor.requires_grad:
        made.grad_dtype = tensor.grad_dtype  # of FP8 parameters, float32
    return made


def _differentiate(results: Any, *given: Any) -> None:
    """Run the backward pass of everything that was given and requires a gradient."""
    outputs, inputs = (
        [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.requires_grad]
        for tree in (results, given)
    )
    if outputs and inputs:
        total = torch.stack([output.float().sum() for output in outputs]).sum()
        torch.autograd.grad(total, inputs, allow_unused=True)


def _counted(found: list[str]) -> list[str]:
    """Each answer once, in the order of the calls."""
    lines = []
    for answer, times in Counter(found).items():
        first, *reasons = answer.split("\n")
        lines.append("\n".join([first + (f" ({times} times)" if times > 1 else ""), *reasons]))
    return lines
