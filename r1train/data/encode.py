"""Problems as prompt tokens, completions as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from r1train.data.problems import Problem
from r1train.data.prompts import TAGS, render_prompt


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Iterable[Problem], template: str
) -> list[list[int]]:
    """Token ids of every problem's prompt. A chat template writes its special tokens itself."""
    texts = [render_prompt(problem.prompt, template, tokenizer) for problem in problems]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=template != "chat")["input_ids"]
    return ids


def encode_scored(
    tokenizer: PreTrainedTokenizerBase, prompt: str, said: str, template: str
) -> tuple[list[int], list[int]]:
    """Tokens of a rendered prompt and of what is said after it, as a reward model reads them.

    The score is read at the end-of-sequence token. HuggingFace reads the last token that is not
    padding: where one token is both, the end is left out, and the score is the last word's.
    """
    start: list[int] = tokenizer(prompt, add_special_tokens=template != "chat")["input_ids"]
    ids: list[int] = tokenizer(said, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id]
    while ids and ids[-1] == tokenizer.pad_token_id:
        ids.pop()
    return start, ids


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: list[list[int]]
) -> list[str]:
    """Text of every completion, without the tokens that only mark where it begins and ends.

    Other special tokens stay: for many tokenizers <think> and <answer> are such.
    """
    marks = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}
    endings = set(tokenizer.all_special_ids) - tags  # a model may stop at others than its EOS
    bodies = [[*ids[:-1], *(id for id in ids[-1:] if id not in endings)] for ids in completions]
    texts: list[str] = tokenizer.batch_decode(
        [[id for id in ids if id not in marks] for ids in bodies], skip_special_tokens=False
    )
    return texts


def distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The distinct prompts in the order they come in, and which of them each prompt is."""
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    return list(row_of), [row_of[tuple(prompt)] for prompt in prompts]
