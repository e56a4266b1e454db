"""Problems as prompt tokens, completions as text."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from r1train.prompts import render_prompt
from r1train.tasks import Problem


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Iterable[Problem], template: str
) -> list[list[int]]:
    """Token ids of every problem's prompt. A chat template writes its special tokens itself."""
    texts = [render_prompt(problem.question, template, tokenizer) for problem in problems]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=template != "chat")["input_ids"]
    return ids


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: list[list[int]]
) -> list[str]:
    """Text of every completion, without the tokens that only mark its end."""
    texts: list[str] = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts
