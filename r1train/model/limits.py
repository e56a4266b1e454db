"""Whether a tokenizer and the problems fit the model, before anything is trained."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.data.encode import encode_prompts
from r1train.data.problems import ProblemSet
from r1train.data.prompts import TAGS, render_prompt
from r1train.data.selection import Selection

MARKS = 16  # tokens that a tokenizer may add to those of a text


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
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    needed = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, *TAGS}
    beyond = {
        token: number
        for token, number in _beyond(model, tokenizer).items()
        if token in needed or token not in special
    }
    if beyond:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise ConfigError(
            f"{_where(tokenizer)} has {len(tokenizer)} tokens and the model's embedding "
            f"{_rows(model)} rows: {token!r} is number {number}; enlarge it once, with "
            "model.resize_token_embeddings(len(tokenizer)), and save the model"
        )


def fitting_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: ProblemSet,
    template: str,
    completion_length: int,
) -> ProblemSet:
    """The problems whose prompts have room for a completion among the model's positions.

    ConfigError where one has not, unless its dataset's `on_bad_row` says to skip it; and where a
    prompt has no tokens, or some that the model does not know.
    """
    limit, long = positions(model), np.zeros(len(problems), bool)
    longest, most = "", 0
    strange = _beyond(model, tokenizer)
    for number, problem in problems.as_they_lie():
        text = render_prompt(problem.prompt, template, tokenizer)
        # Few texts have to be tokens for this: those have at least a byte each, but for some marks.
        short = limit is None or len(text.encode()) + MARKS + completion_length <= limit
        if short and text.strip() and not any(token in text for token in strange):
            continue
        (prompt,) = encode_prompts(tokenizer, [problem], template)
        check_sequences(model, tokenizer, [prompt])
        if not prompt:
            raise ConfigError(f"{problem.where}: its prompt is empty; see task.prompt_template")
        if limit is None or len(prompt) + completion_length <= limit:
            continue
        if problems.sources[problem.source].on_bad_row == "skip":
            long[number] = True
        elif len(prompt) > most:
            longest, most = problem.where, len(prompt)
    if longest:
        raise ConfigError(
            f"{longest}: its prompt of {most} tokens and a completion of {completion_length} go "
            f"past the model's {limit} positions; lower rollout.max_completion_length (and "
            'eval\'s), or leave such problems out (on_bad_row = "skip")'
        )
    if len(long) and long.all():
        raise ConfigError(
            f"all {len(long)} prompts with a completion of {completion_length} tokens go past the "
            f"model's {limit} positions; lower rollout.max_completion_length (and eval's)"
        )
    if not long.any():
        return problems
    logging.getLogger("r1train").warning(
        "%d of %d prompts are skipped: with a completion of %d tokens they go past the model's %s "
        "positions",
        *(long.sum(), len(problems), completion_length, limit),
    )
    kept = array("q", np.flatnonzero(~long).tobytes())
    return ProblemSet(Selection(problems.problems, kept), problems.sources, problems.lacking)


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


def _beyond(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that the model has no embedding for."""
    rows = _rows(model)
    return {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}


def _rows(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _where(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {tokenizer.name_or_path}".rstrip()
