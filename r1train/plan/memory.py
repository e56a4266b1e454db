"""What a stage keeps in a device's memory, and how many completions it decodes at a time.

The bytes are those of r1train's own tensors (`learn/optim.py`, `learn/grpo.py`, `model/policy.py`,
`engine/shared_prefix.py`); tests compare them with runs on a CPU. Several devices hold weights,
gradients and optimizer in shards of the same size (FSDP2; experts by expert parallelism).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1train.config.sections import Config
from r1train.plan.activations import Kept, kept
from r1train.plan.hardware import Cluster
from r1train.plan.shapes import Shape

WIDTH = {"float32": 4, "bfloat16": 2}
KEPT_OF_HEAD = {False: 56 << 20, True: 2560 << 20}
"""Bytes of probabilities that the head keeps at least, on a CPU, and at most, on a GPU
(`r1kernels.kept_memory`)."""
CPU_SHARE = 1 / 8  # of what is free there
ENGINE_SHARE = 0.35
"""Of a device's memory, for the weights of an engine that several devices share."""
CACHE_SHARE = 0.25
"""Of a device's memory, for what decoding keeps, unless rollout.max_memory_gib says otherwise."""
SLOTS = {False: 1.125, True: 2.25}
"""Slots for each completion in r1train's engine, at most (`engine/grid.py`)."""
USABLE = 0.94
"""Of a device's memory: the rest is the driver's, and lost between the allocator's blocks."""


@dataclass(frozen=True)
class Engine:
    """What samples: `devices` of them hold the weights once."""

    devices: int
    own: bool
    """r1train's own, which decodes with the trainer's weights, or a copy, on one device. Others
    keep a cache in pages, and take a new completion where one has ended."""
    latent: bool
    """Whether the cache keeps the latent of multi-head latent attention, not keys and values."""
    weights: float
    """Bytes on each device; 0 where they are the trainer's."""
    per_token: float
    """Bytes of the cache for each token."""
    rows: float
    """Completions that one engine decodes at the same time."""
    cache: float
    """Bytes that these take on each device."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by component, in each phase."""

    phases: dict[str, dict[str, float]]
    engine: Engine | None

    @property
    def peak(self) -> tuple[str, float]:
        """The phase that takes most, and its bytes."""
        sums = {name: sum(parts.values()) for name, parts in self.phases.items()}
        name = max(sums, key=sums.__getitem__)
        return name, sums[name]


def width_of(config: Config, shape: Shape) -> tuple[float, int]:
    """Bytes of a weight, and of an activation."""
    width = WIDTH[config.dtype]
    stored = shape.fp8 and config.precision == "fp8"
    return (1 + 4 / 128**2 if stored else width), width


def trained(config: Config, shape: Shape) -> int:
    """Weights that have a gradient: all, or those of the adapters."""
    rank = config.model.lora_rank
    if not rank:
        return shape.parameters
    if shape.latent is not None:
        own, hidden = shape.latent, shape.hidden
        query = own.query_rank or hidden
        ends = hidden + own.rank + own.position + query + shape.heads * shape.head
        ends += own.rank + shape.heads * (own.content + 2 * own.value) + hidden
        ends += hidden + query if own.query_rank else 0
    else:
        queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
        ends = 4 * shape.hidden + 2 * queries + 2 * keys + 3 * (shape.hidden + shape.inner)
    return rank * shape.layers * ends


def optimizer(config: Config, shape: Shape, cluster: Cluster) -> dict[str, float]:
    """Weights and what the optimizer keeps, on each device."""
    weight, count = width_of(config, shape)[0], trained(config, shape) / cluster.count
    found = {"weights": weight * shape.parameters / cluster.count}
    if weight < 4:
        found["float32 copies"] = 4.0 * count
    return found | {"moments": 8.0 * count}


def training(
    config: Config,
    shape: Shape,
    cluster: Cluster,
    *,
    tokens: float,
    rows: float,
    parts: float,
    head: bool = True,
) -> dict[str, float]:
    """An update, at its fullest: while the last micro-batch of `tokens` goes back.

    Args:
        rows: tokens of the micro-batch that the loss is of.
        parts: micro-batches of an update; with one, gradients and activations take turns.
        head: whether the loss goes through the head of the vocabulary.
    """
    _, width = width_of(config, shape)
    per_token = kept(shape, width, elementwise=config.elementwise)
    checkpointed = config.model.gradient_checkpointing
    activations = per_token.bytes(tokens, checkpointed=checkpointed)
    gradients = 4.0 * trained(config, shape) / cluster.count
    table = 4.0 * shape.table if head and not config.model.lora_rank else 0.0
    backward = max(table, tokens * per_token.transient)
    shares = _shares(config, shape, cluster, rows) if head else 0.0
    held = activations + shares + rows * width * shape.hidden
    both = gradients + held if parts > 1 else max(gradients, held)
    return {
        "gradients": gradients if parts > 1 else max(0.0, both - held),
        "activations": activations,
        "loss": held - activations,
        "backward pass": backward,
        **gathered(config, shape, cluster),
    }


def _shares(config: Config, shape: Shape, cluster: Cluster, rows: float) -> float:
    """Probabilities that the head keeps from its forward to its backward pass."""
    wanted = ceil(rows / 64) * 64 * shape.vocabulary * WIDTH[config.dtype]
    gpu = cluster.device.name != "cpu"
    most = KEPT_OF_HEAD[gpu] if gpu else max(KEPT_OF_HEAD[gpu], CPU_SHARE * cluster.device.memory)
    return min(wanted, most)


def gathered(config: Config, shape: Shape, cluster: Cluster) -> dict[str, float]:
    """Weights that FSDP2 has whole at once: two layers but for their experts, and the tables."""
    if cluster.count == 1:
        return {}
    _, width = width_of(config, shape)
    layer = shape.attention
    if shape.experts is None:
        layer += 3 * shape.hidden * shape.inner
    else:
        layer += max(3 * shape.hidden * shape.inner, shape.experts.shared * shape.expert)
    return {"gathered": float(width * (2 * layer + shape.table * (1 if shape.tied else 2)))}


def engine_of(config: Config, shape: Shape, cluster: Cluster, *, length: int, rows: int) -> Engine:
    """What decodes `rows` completions of at most `length` tokens."""
    weight, width = width_of(config, shape)
    if config.rollout.dtype is not None:
        weight = WIDTH[config.rollout.dtype]
        width = WIDTH[config.rollout.dtype]
    memory, own = cluster.device.memory, cluster.count == 1
    devices = 1
    while weight * shape.parameters / devices > ENGINE_SHARE * memory and devices < cluster.count:
        devices *= 2
    latent = shape.latent is not None and not own
    per_token = float(width * (shape.kept_latent if latent else shape.kept))
    bound = CACHE_SHARE * memory
    if config.rollout.max_memory_gib is not None:
        bound = config.rollout.max_memory_gib * 2**30
    tokens = float(length + config.plan.prompt_length)
    if own:
        tokens *= SLOTS[cluster.device.name != "cpu"]
    replicas = max(1, cluster.count // devices)
    fit = devices * bound / (tokens * per_token)
    most = config.rollout.batch_size if own else ceil(rows / replicas)
    at_once = min(float(most), fit, float(rows))
    if own:
        at_once = float(int(at_once))
    copied = not own or config.rollout.dtype is not None
    return Engine(
        devices,
        own,
        latent,
        weight * shape.parameters / devices if copied else 0.0,
        per_token,
        at_once,
        max(at_once, 1.0) * tokens * per_token / devices,
    )


def rolling_out(engine: Engine, static: dict[str, float]) -> dict[str, float]:
    """A rollout: the trainer's weights stay, gradients are not there."""
    found = dict(static)
    if engine.weights:
        found["engine's weights"] = engine.weights
    return found | {"cache": engine.cache}


def kept_by(config: Config, shape: Shape) -> Kept:
    _, width = width_of(config, shape)
    return kept(shape, width, elementwise=config.elementwise)
