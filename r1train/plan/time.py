"""How long the phases of a stage take: arithmetic or traffic over what kernels were measured to do.

A phase takes the longest of what it computes, reads from memory and sends between devices, as if
these overlapped, and what is waited for in turn: the tokens of the longest completion.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from r1train.plan.hardware import Cluster, Device
from r1train.plan.memory import Engine
from r1train.plan.shapes import Shape

ATTENTION_SHARE = 0.45
"""Of the peak that attention over packed sequences reaches where there is no record of it."""
COPY_SHARE = 0.8
"""Of the memory's bandwidth that norms, gates and the optimizer reach: no record of whole steps."""
LAYER_SECONDS = {False: 0.6e-3, True: 20e-6}
"""What a decoding step waits for in each layer beside the traffic, on a CPU and on a GPU (captured
graphs); a supposition but for the CPU: a rollout of a small model, recorded there."""
HOP_SECONDS = {False: 15e-6, True: 40e-6}
"""Of an exchange between the devices of an engine, within a node and between nodes: supposed."""
STEPS = 400
"""Points at which a rollout's decoding steps are summed."""


@dataclass(frozen=True)
class Phase:
    """Seconds, and what they are bound by."""

    seconds: float
    bound: str

    def __add__(self, other: Phase) -> Phase:
        longest = max(self, other, key=lambda phase: phase.seconds)
        return Phase(self.seconds + other.seconds, longest.bound)

    def __mul__(self, factor: float) -> Phase:
        return Phase(self.seconds * factor, self.bound)


NOTHING = Phase(0.0, "nothing")


def longest(**seconds: float) -> Phase:
    """Of what overlaps."""
    bound = max(seconds, key=seconds.__getitem__)
    return Phase(seconds[bound], bound.replace("_", " "))


@cache
def measured() -> dict[str, dict[str, dict[str, Any]]]:
    """Records by device and by what was measured."""
    return tomllib.loads(files("r1train.plan").joinpath("measured.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Rates:
    """What a device reaches, operations or bytes a second."""

    dense: float
    experts: float
    head: float
    attention: float
    decode: float
    """Bytes of weights and cache a second, of a few tokens."""
    copy: float
    unrecorded: tuple[str, ...]
    """Of these, those that no record of this device says."""


def rates(device: Device, dtype: str, *, fp8: bool = False) -> Rates:
    """Those of the device's records, or the share of the peak that an H100's say."""
    own, other = measured().get(device.name, {}), measured()["H100"]
    reference = _h100()
    missing: list[str] = []

    def rate(what: str, key: str) -> float:
        """By a record of this device, or by the share that an H100 has of its peak."""
        if key in own.get(what, {}):
            return float(own[what][key])
        missing.append(what)
        there = other.get(what, {})
        if not there:
            return ATTENTION_SHARE * device.peak(dtype)
        kind = key if key in there else "bfloat16"
        return float(there[kind]) / reference.peak(kind) * device.peak(key)

    decode = own.get("decode", {}).get("bytes")
    if decode is None:
        missing.append("decode")
        decode = float(other["decode"]["bytes"]) / reference.bandwidth * device.bandwidth
    dense = rate("dense_fp8", "fp8") if fp8 and device.fp8 else rate("dense", dtype)
    found = Rates(
        dense,
        rate("experts", dtype),
        rate("head", dtype),
        rate("attention", dtype),
        float(decode),
        COPY_SHARE * device.bandwidth,
        (),
    )
    return Rates(**{**vars(found), "unrecorded": tuple(dict.fromkeys(missing))})


def _h100() -> Device:
    from r1train.plan.hardware import devices

    return devices()["H100"]


def pass_seconds(
    shape: Shape, at: Rates, tokens: float, context: float, *, factor: float, heads: float = 1.0
) -> float:
    """Seconds of one device for the products of `tokens`.

    Args:
        context: tokens that each attends to, on average.
        factor: forward passes that it counts as: 3 with the backward pass, 4 with checkpointing.
        heads: the same of the head of the vocabulary, which nothing makes again.
    """
    products = shape.products
    seconds = 2 * products["dense"] / at.dense + 2 * products["experts"] / at.experts
    seconds += shape.attended(context) / at.attention
    return tokens * (factor * seconds + heads * 2 * products["head"] / at.head)


def sharded_bytes(shape: Shape, width: float, chosen_nodes: float) -> tuple[float, float]:
    """What each device receives: weights of a pass over the model, and of each token of a layer.

    Experts stay where they are, and tokens go to them and come back; other weights are gathered.
    """
    weights = width * (shape.parameters - shape.routed)
    each = 0.0
    if shape.experts is not None:
        each = 2.0 * width * shape.mixture_layers * shape.hidden * chosen_nodes
    return weights, each


def update_phase(
    shape: Shape,
    at: Rates,
    cluster: Cluster,
    *,
    tokens: float,
    context: float,
    passes: float,
    traffic: float,
    parts: float,
    width: int,
    checkpointed: bool,
) -> Phase:
    """Forward and backward passes over `tokens`, all devices together.

    Args:
        passes: 1: forward alone; 3: forward and backward.
        traffic: bytes for each token that norms and gates read and write.
        parts: micro-batches of a device, for each of which weights are gathered.
    """
    own = tokens / cluster.count
    training = passes > 1
    factor = passes + (1 if training and checkpointed else 0)
    compute = pass_seconds(shape, at, own, context, factor=factor, heads=passes)
    copied = own * traffic * factor / at.copy
    if cluster.count == 1:
        return Phase(compute + copied, "arithmetic" if compute >= copied else "memory")
    nodes = min(4.0, cluster.count / cluster.device.node)  # DeepSeek-V3 sends to four at most
    weights, each = sharded_bytes(shape, width, max(1.0, nodes))
    speed = cluster.joined(cluster.count)
    gathers = (3 if training else 1) * max(1.0, parts)
    network = (gathers * weights + own * each * (2 if training else 1)) / speed
    return longest(arithmetic=compute + copied, network=network)


def step_phase(shape: Shape, at: Rates, cluster: Cluster, trained: float, width: float) -> Phase:
    """The optimizer: float32 copies, moments and gradients are read, and written again."""
    half = width < 4
    moved = trained * ((16 + 12 + width) if half else (16 + 12))
    return Phase(moved / cluster.count / at.copy, "memory")


def decay(mean: float, cap: int) -> float:
    """τ of exponentially distributed lengths, cut at `cap`, whose mean is `mean`."""
    if mean >= 0.999 * cap:
        return math.inf
    low, high = 1e-3, 1e6 * cap
    for _ in range(200):
        middle = math.sqrt(low * high)
        found = middle * -math.expm1(-cap / middle)
        low, high = (middle, high) if found < mean else (low, middle)
    return low


def rollout_phase(
    shape: Shape,
    at: Rates,
    cluster: Cluster,
    engine: Engine,
    *,
    completions: int,
    mean: float,
    cap: int,
    prompt: float,
    group: int,
    width: float,
) -> Phase:
    """Completions whose lengths are exponentially distributed and cut at `cap`.

    r1train's engine decodes batch after batch, each to its longest; others refill what has ended,
    and only the last completions are waited for.
    """
    replicas = max(1, cluster.count // engine.devices)
    own = completions / replicas
    tau = decay(mean, cap)
    rows = max(1.0, min(engine.rows, own))
    waves, filled = math.ceil(own / rows - 1e-9), 0.0
    prefill = pass_seconds(shape, at, own / group * prompt, prompt / 2, factor=1, heads=0)
    total = Phase(prefill / engine.devices, "arithmetic")
    if not engine.own and own > rows:
        filled = (own - rows) * mean / rows  # steps of a full engine
        step = decode_step(shape, at, cluster, engine, rows, prompt + mean / 2, width)
        total += step * filled
        waves = 1
    end = cap if math.isinf(tau) else min(float(cap), tau * math.log(max(2.0, 2 * completions)))
    wave = NOTHING
    for number in range(STEPS):
        # Points are closer where more is alive; each stands for the steps around it.
        begin, stop = (end * (n / STEPS) ** 2 for n in (number, number + 1))
        at_step = (begin + stop) / 2
        alive = rows * (1.0 if math.isinf(tau) else math.exp(-at_step / tau))
        step = decode_step(shape, at, cluster, engine, max(alive, 1.0), prompt + at_step, width)
        wave += step * (stop - begin)
    bound = _bound_of_rollout(shape, at, cluster, engine, rows, prompt, mean, width, wave, end)
    total += Phase(wave.seconds, bound) * waves
    return total


def _bound_of_rollout(
    shape: Shape,
    at: Rates,
    cluster: Cluster,
    engine: Engine,
    rows: float,
    prompt: float,
    mean: float,
    width: float,
    wave: Phase,
    end: float,
) -> str:
    """What the wave would not be shorter without: the longest completion, or each step's work."""
    alone = decode_step(shape, at, cluster, engine, 1.0, prompt + end / 2, width)
    if alone.seconds * end > 0.5 * wave.seconds:
        return "the longest completions"
    return decode_step(shape, at, cluster, engine, rows, prompt + mean / 2, width).bound


def decode_step(
    shape: Shape,
    at: Rates,
    cluster: Cluster,
    engine: Engine,
    rows: float,
    context: float,
    width: float,
) -> Phase:
    """One token for each of `rows` completions of an engine."""
    products, devices = shape.products, engine.devices
    read = shape.parameters - shape.routed - (0 if shape.tied else shape.table)
    if shape.experts is not None:
        missed = (1 - shape.experts.chosen / shape.experts.count) ** rows
        read += shape.routed * (1 - missed)
    moved = width * read + rows * context * engine.per_token
    memory = moved / devices / at.decode
    operations = 2 * products["dense"] / at.dense + 2 * products["experts"] / at.experts
    operations += 2 * products["head"] / at.head + attended(shape, engine, context) / at.attention
    arithmetic = rows * operations / devices
    gpu = cluster.device.name != "cpu"
    waited = shape.layers * LAYER_SECONDS[gpu]
    if devices > 1:
        across = devices > cluster.device.node
        sent = 2 * rows / devices * shape.hidden * width * shape.layers
        sent *= min(shape.experts.chosen if shape.experts else 1, devices)
        waited += 2 * shape.layers * HOP_SECONDS[across] + sent / cluster.joined(devices)
    found = longest(reading_weights_and_cache=memory, arithmetic=arithmetic)
    bound = found.bound if found.seconds >= waited else "latency of the layers"
    return Phase(found.seconds + waited, bound)


def attended(shape: Shape, engine: Engine, context: float) -> float:
    """Operations of a decoded token's attention: to the latent itself where the cache keeps it."""
    if not engine.latent or shape.latent is None:
        return shape.attended(context)
    own = shape.latent
    return 2.0 * shape.layers * shape.heads * (2 * own.rank + own.position) * context


def sync_phase(shape: Shape, cluster: Cluster, engine: Engine, at: Rates, width: float) -> Phase:
    """The weights, from the trainer's shards to every engine."""
    if not engine.weights:
        return NOTHING
    if cluster.count == 1:
        return Phase(2 * width * shape.parameters / at.copy, "memory")
    return Phase(engine.weights / cluster.joined(cluster.count), "network")


def share_of_peak(operations: float, seconds: float, cluster: Cluster, dtype: str) -> float:
    """Model FLOPs utilisation: 6 operations for each weight and token, over the peak."""
    return operations / (seconds * cluster.count * cluster.device.peak(dtype)) if seconds else 0.0


def summed(phases: Mapping[str, Phase]) -> float:
    return sum(phase.seconds for phase in phases.values())
