"""Where a completion ends: at a stop token of the model, or after a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARGIN = 8
"""Tokens decoded before those that a string may span: the first of a text may lose its space."""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer ends texts with, and what the model's generation config adds."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *listed} - {None})


class StopStrings:
    """Finds the first of `strings` in the text of a completion."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        # A token is at least a byte of text, so no string spans more of them.
        self.window = max(len(text.encode()) for text in strings) + MARGIN

    def end(self, ids: Sequence[int], fresh: int) -> int | None:
        """How many of the last `fresh` tokens there are up to the one that completes a string.

        Args:
            ids: those, and the `window` before them, or all there are. No string ended there.
        """
        if not self._found(ids):
            return None
        before = len(ids) - fresh
        ends = (count for count in range(1, fresh + 1) if self._found(ids[: before + count]))
        return next(ends, None)

    def _found(self, ids: Sequence[int]) -> bool:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return any(string in str(text) for string in self.strings)
