"""Clusters: so many devices of a kind, in nodes, with their rates and links."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod

from r1train.config.schema import ConfigError, nearest, shown

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device; see `devices.toml`."""

    name: str
    title: str
    memory_gib: float
    bandwidth: float
    float32: float
    bfloat16: float
    node: int
    """Devices of a node."""
    price: float
    fp8: float | None = None
    link: float | None = None
    network: float | None = None

    @property
    def memory(self) -> float:
        return self.memory_gib * GIB

    def peak(self, dtype: str) -> float:
        """Operations a second of dense products, as the maker says; FP8 where there is none is
        computed in bfloat16."""
        return float(getattr(self, dtype) or self.bfloat16)


@dataclass(frozen=True)
class Cluster:
    """`count` devices, joined by `link` inside a node and by `network` between nodes."""

    device: Device
    count: int

    def __str__(self) -> str:
        return f"{self.count} × {self.device.title}" if self.count > 1 else self.device.title

    def joined(self, count: int) -> float:
        """Bytes a second that each of `count` devices exchanges with the others of them."""
        within = count <= self.device.node
        speed = self.device.link if within else self.device.network
        return speed or float("inf")


@cache
def devices() -> dict[str, Device]:
    text = files("r1train.plan").joinpath("devices.toml").read_text("utf-8")
    return {name: Device(name, **values) for name, values in tomllib.loads(text).items()}


def cluster_of(text: str) -> Cluster:
    """`cpu`, `H100`, `8xH100`, `64x8xH800`: numbers, and the name of a device."""
    *counts, name = re.split(r"[x×*]", text)
    known = {device.lower(): device for device in devices()}
    if name.lower() not in known or not all(count.isdigit() and int(count) for count in counts):
        raise ConfigError(
            f"cluster {shown(text)}: expected a device, or so many, as 8xH100 or 64x8xH800: "
            f"{nearest(name, devices())}"
        )
    return Cluster(devices()[known[name.lower()]], prod(map(int, counts)))
