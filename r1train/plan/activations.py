"""What the backward pass of an update needs to be kept, in bytes for each token of a micro-batch.

Counted from the forward pass of HuggingFace's layers as `r1kernels.hf` patches them: every tensor
that autograd saves, once. Sequences are packed, so tokens are those of prompts and completions
without padding, and no layer keeps scores of its attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from r1train.plan.shapes import Shape


@dataclass(frozen=True)
class Kept:
    """Bytes for each token that are kept until the backward pass."""

    layers: float
    """Of all layers together."""
    boundary: float
    """Of a layer's input, which is all that gradient checkpointing keeps of it."""
    widest: float
    """Of the layer that keeps most."""
    beside: float
    """Of what is no layer: the embedded tokens and the last norm."""
    transient: float
    """Of gradients that the backward pass of a layer holds at one time."""

    def bytes(self, tokens: float, *, checkpointed: bool) -> float:
        if not checkpointed:
            return tokens * (self.layers + self.beside)
        return tokens * (self.boundary + self.widest + self.beside)


def kept(shape: Shape, width: int, *, elementwise: bool = False) -> Kept:
    """Of numbers of `width` bytes; `elementwise`: norms and gates are fused ops."""
    norm = _norm(width, elementwise)
    own = shape.latent
    if own is None:
        values = 2 * (shape.heads + shape.key_heads) * shape.head
        attention = width * values + 4.0 * shape.heads
    else:
        # Values are a view of what they were projected with.
        values = shape.heads * (2 * shape.head + own.content + 2 * own.value)
        attention = width * values + 4.0 * shape.heads
        attention += norm * (own.rank + (own.query_rank or 0))
    around = 2 * norm * shape.hidden + attention
    gates = 3 if elementwise else 4
    dense = around + width * gates * shape.inner
    mixture = 0.0
    if shape.experts is not None:
        experts = shape.experts
        routed = 2 * width * experts.chosen * experts.inner + 16 * experts.chosen
        router = (4 + 4 * (width < 4)) * experts.count
        mixture = around + routed + router + width * gates * experts.shared * experts.inner
    count = shape.mixture_layers
    wide = 2 * (shape.inner + shape.hidden)
    if shape.experts is not None:  # of every chosen expert: rows in and out, gates, and the product
        wide = max(wide, shape.experts.chosen * (2 * shape.hidden + 3 * shape.experts.inner))
    return Kept(
        layers=(shape.layers - count) * dense + count * mixture,
        boundary=float(shape.layers * width * shape.hidden),
        widest=max(dense if count < shape.layers else 0.0, mixture),
        beside=norm * shape.hidden,
        transient=float(width * wide),
    )


def _norm(width: int, elementwise: bool) -> float:
    """For each number that a norm takes: its input in float32, the normalised, the result."""
    if elementwise:
        return 2.0 * width
    return 12.0 if width == 4 else 8.0
