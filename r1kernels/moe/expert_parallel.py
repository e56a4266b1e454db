"""``moe_experts`` whose experts lie on the ranks of a process group, E/W on each, in their order.

Rows of tokens go to the ranks of their experts and come back through PyTorch's own all-to-all
(functional collectives). A rank gets its rows in the order (source rank, expert, slot) and sorts
them once more, stably: an expert's rows then stand in the order (source rank, slot), as they would
in one process with the tokens of all ranks. Since a row does not depend on its batch, results and
gradients have the same bits as there, those of the experts' weights included.

**NCCL.** One process a GPU and the same code: ``dist.init_process_group("nccl")``, then a group, or
one dimension of a mesh, say ``init_device_mesh("cuda", (nodes, 8))[1]`` so that rows stay within a
node. What remains is one wait for the device in each forward pass: the collective wants to know on
the host how many rows go where, which the devices alone know. The backward pass reuses those
numbers. To be rid of it one would send k·T rows to each rank whatever they hold, W times the
traffic.

**DTensor.** Weights sharded by ``Shard(0)`` on the expert dimension are handed over as
``gate_up.to_local()``. Their gradients are complete on their rank and are not to be reduced over
this group; over the replicas of the group they are, as always. A loss that is a mean over ranks
must be divided by their number before the backward pass, not through an all-reduce of gradients.

**HuggingFace.** Its own expert parallelism (``distributed_config``) keeps all tokens on all ranks,
gives the choices of other ranks' experts ids ≥ num_experts, and adds up the ranks' results:
``moe_sort`` skips such ids, so the experts implementation needs nothing of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from r1kernels.core import autocast, check
from r1kernels.core.once import inputs_of, once
from r1kernels.moe.combine import MOE_COMBINE, accumulate_dtype, moe_combine
from r1kernels.moe.experts import MOE_EXPERTS, MOE_EXPERTS_BACKWARD, moe_experts
from r1kernels.moe.permute import MOE_PERMUTE, moe_permute
from r1kernels.moe.route import Routing, check_routing, check_sort


def moe_experts_parallel(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    routing: Routing,
    *,
    group: ProcessGroup | DeviceMesh,
    activation: Callable[[Tensor], Tensor] | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """``moe_experts`` of this rank's tokens, with the experts of all W ranks of ``group``.

    All ranks call it, and its backward pass, together, each with as many tokens as it has, none
    included; what needs a gradient on one rank does on all.

    Args:
        x: [T, H], this rank's tokens.
        gate_up, down, gate_up_bias, down_bias: of experts rank·E/W to (rank + 1)·E/W − 1; shapes as
            in ``moe_experts``, with E/W for E.
        routing: of ``moe_route`` over all E experts, or ``Routing.of(weights, ids, E)``; not
            padded.
        group: a process group, or a mesh of one dimension.
        activation, transposed: see ``moe_experts``.

    Returns:
        [T, H], dtype of x; under ``torch.autocast`` x, the weights and the biases are cast first.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "moe_experts_parallel"
    if isinstance(group, DeviceMesh):
        group = group.get_group()
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"{name}: group: expected a ProcessGroup or a DeviceMesh of one dimension, "
            f"got {check.described(group)}"
        )
    check.flag(name, "transposed", transposed)
    check_routing(name, routing)
    shapes = check.Shapes(name)
    x, gate_up, down = autocast.cast(x, gate_up, down)
    gate_up_bias, down_bias = autocast.cast(gate_up_bias, down_bias)
    shapes("x", x, "T H", check.FLOATS)
    shapes("gate_up", gate_up, "E/W H U" if transposed else "E/W U H", (x.dtype,))
    shapes("down", down, "E/W I H" if transposed else "E/W H I", (x.dtype,))
    shapes("routing.weights", routing.weights, "T k", (accumulate_dtype(x),))
    here, width, inner = (shapes.sizes[size] for size in ("E/W", "U", "I"))
    if activation is None and width != 2 * inner:
        raise ValueError(f"{name}: gate_up: expected 2·I = {2 * inner} rows an expert, got {width}")
    experts = here * dist.get_world_size(group)
    check_sort(name, routing, experts)
    shapes("routing.inverse", routing.inverse, "T k", (torch.int32,))
    if routing.gather.numel() != routing.inverse.numel():
        raise ValueError(
            f"{name}: routing: expected one without padding (align = 1), got "
            f"P = {routing.gather.numel()} rows for T·k = {routing.inverse.numel()}"
        )
    exchange, ids = _exchange(routing.counts, group)
    gather = routing.gather[: sum(exchange.sent)]  # no rows of skipped slots
    ones = routing.weights.new_ones(ids.shape)
    theirs = Routing.of(ones, ids, here)
    options = activation, gate_up_bias, down_bias
    if transposed or any(option is not None for option in options):
        rows = exchange.there(moe_permute(x, gather, routing.inverse))
        rows = moe_experts(
            rows, gate_up, down, theirs, activation=activation, gate_up_bias=gate_up_bias,
            down_bias=down_bias, transposed=transposed,
        )  # fmt: skip
        return moe_combine(exchange.back(rows), routing.weights, gather, routing.inverse)
    y: Tensor = _ExpertParallel.apply(
        exchange, theirs, gather, routing.inverse, x, gate_up, down, routing.weights
    )
    return y


class Exchange(NamedTuple):
    """How many rows this rank sends to each rank, and receives from each.

    What is exchanged is waited for where it is first used; gradients go the other way.
    """

    group: ProcessGroup
    sent: list[int]
    received: list[int]

    def there(self, rows: Tensor) -> Tensor:
        """From the ranks of the tokens to those of the experts."""
        return collectives.all_to_all_single_autograd(rows, self.received, self.sent, self.group)

    def back(self, rows: Tensor) -> Tensor:
        """From the ranks of the experts to those of the tokens."""
        return collectives.all_to_all_single_autograd(rows, self.sent, self.received, self.group)


def _exchange(counts: Tensor, group: ProcessGroup) -> tuple[Exchange, Tensor]:
    """From the rows for each of all experts: the exchange, and [R, 1] ids of the rows received."""
    ranks = dist.get_world_size(group)
    coming = collectives.all_to_all_single(counts, None, None, group)
    each_way = torch.stack([counts, coming]).view(2, ranks, -1).sum(2)
    sent, received = each_way.tolist()  # waits for the device
    expert = torch.arange(len(counts) // ranks, device=counts.device).repeat(ranks)
    ids = expert.repeat_interleave(coming, output_size=sum(received))
    return Exchange(group, sent, received), ids[:, None]


class _ExpertParallel(torch.autograd.Function):
    """As ``moe_experts`` keeps no row of the down product, its weights' gradient is made where
    the experts are: weights go there in the backward pass, and the gradient comes back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        exchange: Exchange,
        theirs: Routing,
        gather: Tensor,
        inverse: Tensor,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        weights: Tensor,
    ) -> Tensor:
        ctx.inputs = inputs_of((x, gate_up, down, weights))
        rows = exchange.there(MOE_PERMUTE(x, gather, inverse))
        keep = any(ctx.needs_input_grad)
        out, h = MOE_EXPERTS(rows, gate_up, down, theirs.weights, *theirs[3:], keep)
        ctx.exchange = exchange
        ctx.save_for_backward(rows, gate_up, down, *theirs[3:], h, gather, inverse, weights)
        return MOE_COMBINE(exchange.back(out), weights, gather, inverse)

    @staticmethod
    @once("moe_experts_parallel")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows, gate_up, down, *sort, h, gather, inverse, weights = ctx.saved_tensors
        exchange = ctx.exchange
        dy = exchange.there(MOE_PERMUTE(grads[0], gather, inverse))
        slot = gather.long()
        weight = exchange.there(weights.flatten()[slot])[:, None]
        frozen = not (ctx.needs_input_grad[5] or ctx.needs_input_grad[6])
        drows, dgate_up, ddown, dweight = MOE_EXPERTS_BACKWARD(
            dy, rows, gate_up, down, weight, *sort, h, frozen
        )
        dx = MOE_COMBINE(exchange.back(drows), None, gather, inverse)
        dweights = torch.zeros_like(weights)
        dweights.view(-1)[slot] = exchange.back(dweight.flatten())
        if frozen:
            dgate_up = ddown = None
        return None, None, None, None, dx, dgate_up, ddown, dweights
