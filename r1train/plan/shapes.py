"""The shape of a model: how many weights it has, and what a token costs.

From the keys that a HuggingFace config.json has; `models.toml` has those of well-known models.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from r1train.config.model import ModelConfig
from r1train.config.schema import ConfigError, nearest, shown

DENSE, MIXTURE = ("llama", "mistral", "qwen2", "qwen3"), ("deepseek_v3",)
BIASED, NORMED = ("qwen2",), ("qwen3",)
"""Whose queries, keys and values have a bias, and whose queries and keys have a norm."""
PRESETS = {"deepseek-v3-mini": "deepseek-v3-mini", "smollm2": "SmolLM2-135M"}


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): ranks, and widths of a head."""

    query_rank: int | None
    rank: int
    content: int
    position: int
    value: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in all layers but the first `dense` ones."""

    count: int
    chosen: int
    shared: int
    inner: int
    dense: int


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head: int
    """Width of a head; of its queries and keys where there is a latent."""
    inner: int
    """Of the dense layers' gate and up projections, each."""
    tied: bool
    biased: bool = False
    normed: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    fp8: bool = False
    """Whether the checkpoint's weights are FP8 with block scales."""

    @property
    def value_head(self) -> int:
        return self.latent.value if self.latent else self.head

    @property
    def mixture_layers(self) -> int:
        return self.layers - self.experts.dense if self.experts else 0

    @property
    def attention(self) -> int:
        """Weights of the products of a layer's attention."""
        if self.latent is None:
            queries = 2 * self.hidden * self.heads * self.head  # and what comes out
            return queries + 2 * self.hidden * self.key_heads * self.head
        own = self.latent
        rank, width = own.query_rank, self.heads * (own.content + own.position)
        queries = self.hidden * width if rank is None else rank * (self.hidden + width)
        keys = self.hidden * (own.rank + own.position)
        keys += own.rank * self.heads * (own.content + own.value)
        return queries + keys + self.heads * own.value * self.hidden

    @property
    def expert(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.experts.inner if self.experts else 0

    @property
    def routed(self) -> int:
        """Weights of all routed experts."""
        return self.mixture_layers * self.experts.count * self.expert if self.experts else 0

    @property
    def table(self) -> int:
        """Weights of the embedding, and as many of the head."""
        return self.vocabulary * self.hidden

    @property
    def small(self) -> int:
        """Weights that are no matrices: of norms and biases."""
        count = self.hidden * (2 * self.layers + 1)
        if self.biased:
            count += self.layers * self.head * (self.heads + 2 * self.key_heads)
        if self.normed:
            count += self.layers * 2 * self.head
        if self.latent is not None:
            count += self.layers * (self.latent.rank + (self.latent.query_rank or 0))
        return count

    @property
    def parameters(self) -> int:
        """All weights, as `num_parameters()` counts them."""
        tables = self.table * (1 if self.tied else 2)
        dense = (self.layers - self.mixture_layers) * 3 * self.hidden * self.inner
        found = tables + self.small + self.layers * self.attention + dense + self.routed
        if self.experts is not None:
            router = self.hidden * self.experts.count
            found += self.mixture_layers * (router + self.experts.shared * self.expert)
        return found

    @property
    def products(self) -> dict[str, int]:
        """Weights that a token is multiplied with: two operations each in a forward pass."""
        dense = (self.layers - self.mixture_layers) * 3 * self.hidden * self.inner
        found = {"dense": self.layers * self.attention + dense, "experts": 0, "head": self.table}
        if self.experts is not None:
            own = self.experts
            found["dense"] += self.mixture_layers * own.shared * self.expert
            found["dense"] += self.mixture_layers * self.hidden * own.count
            found["experts"] = self.mixture_layers * own.chosen * self.expert
        return found

    @property
    def active(self) -> int:
        """Weights that one token is multiplied with."""
        return sum(self.products.values())

    def attended(self, context: float) -> float:
        """Operations of a token's attention to `context` others, forward."""
        return 2.0 * self.layers * self.heads * (self.head + self.value_head) * context

    @property
    def kept(self) -> int:
        """Numbers that a cache keeps of a token: keys and values of every head of keys."""
        return self.layers * self.key_heads * (self.head + self.value_head)

    @property
    def kept_latent(self) -> int:
        """The same of a cache that keeps the latent, where there is one."""
        if self.latent is None:
            return self.kept
        return self.layers * (self.latent.rank + self.latent.position)


def shape_of(model: ModelConfig) -> Shape:
    """That of the model of a recipe: of a preset, of a folder, or by the folder's name."""
    if model.path is None:
        return named(PRESETS.get(model.preset or "", model.preset or ""))
    folder = Path(model.path)
    if (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except ValueError as error:
            raise ConfigError(f"{folder / 'config.json'}: not valid JSON: {error}") from None
        return read(folder.name, config)
    return named(folder.name)


@cache
def known() -> dict[str, dict[str, Any]]:
    """Names and configurations of `models.toml`."""
    return tomllib.loads(files("r1train.plan").joinpath("models.toml").read_text("utf-8"))


def named(name: str) -> Shape:
    """A shape of `models.toml`."""
    if name not in known():
        raise ConfigError(
            f"model {shown(name)}: no folder of that name with a config.json, and no shape in "
            f"r1train/plan/models.toml: {nearest(name, known())}"
        )
    own = known()[name]
    return read(name, known()[own["like"]] if "like" in own else own)


def read(name: str, config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes."""
    kind = config.get("model_type")
    if kind not in (*DENSE, *MIXTURE):
        accepted = ", ".join((*DENSE, *MIXTURE))
        raise ConfigError(f"{name}: model_type = {shown(kind)}: plans know {accepted}")
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        latent = experts = None
        head = config.get("head_dim") or hidden // heads
        if kind in MIXTURE:
            latent = Latent(
                config["q_lora_rank"],
                config["kv_lora_rank"],
                config["qk_nope_head_dim"],
                config["qk_rope_head_dim"],
                config["v_head_dim"],
            )
            head = latent.content + latent.position
            experts = Experts(
                config["n_routed_experts"],
                config["num_experts_per_tok"],
                config["n_shared_experts"],
                config["moe_intermediate_size"],
                config["first_k_dense_replace"],
            )
        return Shape(
            name,
            config["vocab_size"],
            hidden,
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            head,
            config["intermediate_size"],
            bool(config.get("tie_word_embeddings", False)),
            kind in BIASED,
            kind in NORMED,
            latent,
            experts,
            (config.get("quantization_config") or {}).get("quant_method") == "fp8",
        )
    except KeyError as error:
        raise ConfigError(f"{name}: its config.json has no {error}") from None
