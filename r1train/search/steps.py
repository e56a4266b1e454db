"""A solution's tokens as steps: the same where it was sampled whole and where step by step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from r1train.config.steps import StepsConfig
from r1train.engine.base import Sampling
from r1train.engine.stopping import StopStrings


class Steps:
    """Takes solutions apart, and samples one step at a time.

    A step ends with the first token that completes a separator in the step's own text, at the
    latest after `max_tokens`; the last one ends with the solution.

    Args:
        sampling: of whole solutions.
        stop_tokens: of the model: a solution ends with one of them, or a string of `sampling.stop`.
    """

    def __init__(
        self,
        config: StepsConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        stop_tokens: Collection[int],
    ) -> None:
        self.config, self.limit = config, sampling.max_new_tokens
        self.stop_tokens = frozenset(stop_tokens)
        self.separators = _found(tokenizer, config.separators)
        self.stop = _found(tokenizer, sampling.stop)
        self.one = replace(
            sampling,
            max_new_tokens=min(config.max_tokens, self.limit),
            stop=(*sampling.stop, *config.separators),
        )
        """How a next step is sampled."""

    def ends(self, completion: Sequence[int]) -> list[int]:
        """Lengths of the prefixes that are whole steps, ascending; the last is that of all."""
        found, start = list[int](), 0
        while start < len(completion):
            rest = completion[start : start + self.config.max_tokens]
            start += _end(self.separators, rest) or len(rest)
            found.append(start)
        return found

    def is_whole(self, step: Sequence[int]) -> bool:
        """Whether the solution ends by itself with this step."""
        if step[-1] in self.stop_tokens:
            return True
        return self.stop is not None and self.stop.end(step, len(step)) is not None


def _found(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> StopStrings | None:
    return StopStrings(tokenizer, strings) if strings else None


def _end(strings: StopStrings | None, ids: Sequence[int]) -> int | None:
    """Tokens up to the one that completes the first of the strings; None where there is none."""
    if strings is None:
        return None
    for count in range(1, len(ids) + 1):
        recent = ids[max(0, count - strings.window) : count]
        if strings.end(recent, 1) is not None:
            return count
    return None
