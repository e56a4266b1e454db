"""HuggingFace checkpoints in FP8 (DeepSeek-V3's own format) loaded as they are, on a CPU too.

transformers makes bf16 of them where it finds no GPU of its liking: twice the memory, and nothing
left of the format.
"""

from __future__ import annotations

from functools import cache
from typing import Any

METHOD = "fp8"  # of ``quantization_config.quant_method``


def register_fp8() -> None:
    """Make ``from_pretrained`` keep FP8 weights and their scales, on every device.

    For this process, until ``unregister_fp8``. The layers are transformers' own; ``patch(model,
    fp8=True)`` makes them run and train here. ``save_pretrained`` writes the same format.

    Raises:
        ImportError: the package accelerate, which transformers needs for it, is missing.
    """
    from transformers.utils.import_utils import is_accelerate_available

    if not is_accelerate_available():
        raise ImportError("register_fp8: loading FP8 checkpoints needs accelerate (pip install it)")
    _mapping()[METHOD] = _resident()


def unregister_fp8() -> None:
    """Undo ``register_fp8``."""
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    _mapping()[METHOD] = FineGrainedFP8HfQuantizer


def _mapping() -> dict[str, Any]:
    from transformers.quantizers import auto

    found: dict[str, Any] = auto.AUTO_QUANTIZER_MAPPING
    return found


@cache
def _resident() -> Any:
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    class ResidentFP8Quantizer(FineGrainedFP8HfQuantizer):
        """Weights stay in FP8 unless the config itself says ``dequantize``."""

        def validate_environment(self, *args: Any, **kwargs: Any) -> None:
            """Every device will do: the kernels are ours."""

        @property
        def is_trainable(self) -> bool:
            return True

    return ResidentFP8Quantizer
