"""What the head of the paper's table 4 says of a model: its kind, and how many parameters."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from safetensors import safe_open

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")


def about(folder: Path) -> dict[str, str]:
    """Of a HuggingFace folder. Of the experts those are activated that a token goes to; tied
    weights count once, as they are stored, and scales of FP8 weights not at all."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    experts = next((config[name] for name in _EXPERTS if config.get(name)), None)
    share = config["num_experts_per_tok"] / experts if experts else 1.0
    total = activated = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if name.endswith("_scale_inv"):
                    continue
                count = prod(tensors.get_slice(name).get_shape())
                total += count
                activated += count * (share if ".experts." in name else 1.0)
    return {
        "Architecture": "MoE" if experts else "dense",
        "# Activated Params": _short(activated),
        "# Total Params": _short(total),
    }


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
