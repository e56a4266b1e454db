"""What the trainer needs beside the kernels, and a message that names the command for it."""

from __future__ import annotations

from importlib.util import find_spec

from r1train.config.schema import ConfigError

MODULES = (
    *("transformers", "tokenizers", "safetensors", "numpy"),
    *("reasoning_gym", "mpmath"),
    *("matplotlib", "jinja2", "rich", "tomli_w", "gguf", "regex"),
)
"""Those of the extra "train", whose libraries are imported when they are needed."""


def require_extras() -> None:
    """Raises ConfigError where one is missing: at once, and not when plots are drawn at the end."""
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f'{", ".join(missing)}: not installed; the trainer needs the extra "train": '
            'pip install "r1kernels[train]" (in a checkout: pip install ".[train]")'
        )
