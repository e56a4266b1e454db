"""Whether a tokenizer and the problems fit the model, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.data.encode import encode_prompts
from r1train.data.problems import Problem
from r1train.data.prompts import TAGS


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer ends sequences, and the model knows its tokens.

    Special tokens that no text of a run contains may lie beyond the embedding, as some
    checkpoints have them; `check_sequences` finds them where they are used.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{_where(tokenizer)} has no end-of-sequence token, so no completion would end: set "
            '"eos_token" in its tokenizer_config.json'
        )
    rows = _rows(model)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    needed = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, *TAGS}
    beyond = {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and (token in needed or token not in special)
    }
    if beyond:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise ConfigError(
            f"{_where(tokenizer)} has {len(tokenizer)} tokens and the model's embedding {rows} "
            f"rows: {token!r} is number {number}; enlarge it once, with "
            "model.resize_token_embeddings(len(tokenizer)), and save the model"
        )


def check_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    template: str,
    completion_length: int,
) -> None:
    """Every problem's prompt has tokens that the model knows, and room for its completion."""
    prompts, limit = encode_prompts(tokenizer, problems, template), positions(model)
    check_sequences(model, tokenizer, prompts)
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise ConfigError(f"{problem.where}: its prompt is empty; see task.prompt_template")
    if limit is None:
        return
    problem, prompt = max(zip(problems, prompts, strict=True), key=lambda pair: len(pair[1]))
    if len(prompt) + completion_length > limit:
        raise ConfigError(
            f"{problem.where}: its prompt of {len(prompt)} tokens and a completion of "
            f"{completion_length} go past the model's {limit} positions; lower "
            "rollout.max_completion_length (and eval's), or leave the problem out"
        )


def check_sequences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Sequence[int]]
) -> None:
    """The model has an embedding for every token."""
    largest = max((max(ids, default=0) for ids in sequences), default=0)
    if largest >= _rows(model):
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ConfigError(
            f"a text contains the token {token!r}, number {largest}, and the model's embedding has "
            f"{_rows(model)} rows: remove it from the text, or enlarge the embedding"
        )


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have; None where the architecture does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _rows(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _where(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {tokenizer.name_or_path}".rstrip()
