"""Draws who may import whom: ``python -m tests.layers_drawing`` writes docs/figures/imports.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "imports.svg"
WIDTH, MARGIN, TOP, BAR, GAP = 1000, 24, 60, 34, 8
FAMILY = "#fff7ed", "#ea580c"
GROUND = "#f8fafc", "#64748b"
USES = "#eff6ff", "#2563eb"

ABOUT = {
    "r1kernels": {
        "hf": ("HuggingFace: patches, routers, checkpoints, TRL", USES),
        "nn": ("modules: FP8 layers, losses as Liger has them", USES),
        "fp8": ("quantization, products and layers in FP8", FAMILY),
        "moe": ("routing, sort, experts", FAMILY),
        "policy": ("advantages and policy losses", FAMILY),
        "head": ("log-probabilities without logits", FAMILY),
        "attention": ("packed sequences that share prefixes", FAMILY),
        "elementwise": ("norms, rotations, gated activations", FAMILY),
        "triton": ("launches and builds of all Triton kernels", GROUND),
        "core": ("declaration, dispatch, checks, libraries", GROUND),
    },
    "r1train": {
        "cli": ("the commands", USES),
        "plan": ("memory, time and cost before a run", USES),
        "suite": ("published benchmarks, asked and scored", USES),
        "run": ("a run: folder, checkpoints, stages in turn", USES),
        "stages": ("what a recipe is made of", USES),
        "search": ("trees of steps, and what steps are worth", FAMILY),
        "learn": ("from a rollout to new weights", FAMILY),
        "engine": ("samples completions", FAMILY),
        "rewards": ("rules, and verifiers in processes", FAMILY),
        "model": ("the one caller of the model", FAMILY),
        "data": ("problems and prompts", GROUND),
        "sandbox": ("programs that a model wrote", GROUND),
        "report": ("tables and plots of records", GROUND),
        "config": ("recipes and their sections", GROUND),
        "": ("seeds, metrics: what lies in no folder", GROUND),
    },
}


def drawing(layers: dict[str, Sequence[str]]) -> str:
    """The layers of each package, which import only what is drawn below them; lowest first."""
    height = TOP + max(map(len, layers.values())) * (BAR + GAP) + 60
    width = (WIDTH - 4 * MARGIN) // 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="15">',
        "<title>Which folder may import which: each only those below it</title>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#334155"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for column, (package, names) in enumerate(layers.items()):
        left = MARGIN + column * (width + 2 * MARGIN)
        bottom = height - 40
        lines.append(_text(left, 34, package, 'font-size="17" font-weight="600" fill="#0f172a"'))
        for place, name in enumerate(names):
            about, (fill, stroke) = ABOUT[package][name]
            top = bottom - (place + 1) * (BAR + GAP)
            lines += [
                f'<rect x="{left}" y="{top}" width="{width}" height="{BAR}" rx="8" fill="{fill}" '
                f'stroke="{stroke}" stroke-width="1.5"/>',
                _text(left + 14, top + 22, name or "…", 'font-weight="600" fill="#0f172a"'),
                _text(left + 116, top + 22, about, 'font-size="13" fill="#334155"'),
            ]
    middle, foot = MARGIN + width, height - 40 - GAP - BAR // 2
    lines += [
        f'<path d="M{middle + 2 * MARGIN} {foot}H{middle + 2}" fill="none" stroke="#334155" '
        'stroke-width="1.6" marker-end="url(#arrow)"/>',
        _text(MARGIN, height - 16, "Each folder imports itself and those below it; every layer of "
              "r1train may import r1kernels.", 'font-size="13" fill="#334155"'),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _text(x: int, y: int, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


if __name__ == "__main__":
    from tests.project.test_layers import LAYERS

    FIGURE.write_text(drawing(LAYERS))
