"""Our model as lm-evaluation-harness's: our engine generates, our policy scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from r1kernels.hf import Head
from r1train.config.schema import RunError
from r1train.data.encode import decode_completions
from r1train.engine.base import Request, Sampling
from r1train.engine.sampling import logits_of
from r1train.model.limits import positions
from r1train.model.packing import pack
from r1train.model.policy import Policy
from r1train.seeds import derive_seed
from r1train.suite.sampling import Subject

Scored = tuple[float, bool]
"""Log-likelihood of a continuation, and whether each of its tokens is the most likely one."""
_TOKENS = 8192
"""Of a pass, about."""
_NUMBERS = 1 << 26
"""Of the logits that exist at one time."""
_LONGEST = 1 << 20
"""Positions of a model that does not say how many it has."""


class HarnessModel(TemplateLM):
    """Greedy and sampled generation, and log-likelihoods, of `subject`."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject, self.tokenizer = subject, subject.tokenizer
        self.policy = Policy(subject.model)
        self._device = subject.model.device
        self.max_length = positions(subject.model) or _LONGEST

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:
            begins = self.tokenizer.bos_token
            add_special_tokens = not (begins and string.startswith(begins))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[Scored]:
        """Of (texts, context, continuation). The beginning of a context is left out where both
        are longer than the model."""
        pairs = []
        for _texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise RunError(
                    f"a continuation has {len(continuation)} tokens, and the model "
                    f"{self.max_length} positions"
                )
            room = self.max_length + 1 - len(continuation)  # its last token is no input
            pairs.append((context[-room:], continuation))
        return self._in_order(pairs, self._score, lambda pair: len(pair[0]) + len(pair[1]))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts: each token once, with as much before it as the model has room for."""
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    self.tok_encode(text, add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        flat = [(None, *window) for group in windows for window in group]
        found = iter(self._loglikelihood_tokens(flat))
        return [sum(next(found)[0] for _ in group) for group in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, each up to the first of its stop strings, which it leaves out."""
        groups: dict[Sampling, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(_sampling(request.args[1]), []).append(row)
        texts: dict[int, str] = {}
        for sampling, rows in groups.items():
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise RunError(
                    f"max_gen_toks = {sampling.max_new_tokens}: the model has "
                    f"{self.max_length} positions: lower it in the task's file"
                )
            asked = []
            for row in rows:
                ids = self.tok_encode(requests[row].args[0])[-room:]
                seed = derive_seed(self.subject.config.seed, "harness", row)
                asked.append(Request(ids, 1, seed))
            rollout = self.subject.engine.generate(asked, sampling)
            said = decode_completions(self.tokenizer, rollout.completion_ids)
            texts |= {
                row: _until(text, sampling.stop) for row, text in zip(rows, said, strict=True)
            }
        return [texts[row] for row in range(len(requests))]

    def _in_order(
        self,
        items: Sequence[Any],
        run: Callable[[Sequence[Any]], Iterable[Any]],
        length: Callable[[Any], int],
    ) -> list[Any]:
        """What `run` makes of the items, some at a time, the longest first."""
        order = sorted(range(len(items)), key=lambda row: -length(items[row]))
        found: dict[int, Any] = {}
        while order:
            count = max(1, _TOKENS // length(items[order[0]]))
            part, order = order[:count], order[count:]
            found |= zip(part, run([items[row] for row in part]), strict=True)
        return [found[row] for row in range(len(items))]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        batch = pack([context for context, _ in pairs], [c for _, c in pairs], self._device)

        def scores(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
            """Of each token [T]: its log-probability, and whether it is the most likely."""
            rows = max(1, _NUMBERS // head.weight.shape[0])
            found, likeliest = [], []
            for states, ids in zip(hidden.split(rows), batch.target.split(rows), strict=True):
                logits = logits_of(head, states)
                found.append(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0])
                likeliest.append(logits.argmax(-1) == ids)
            return torch.cat(found), torch.cat(likeliest)

        logprobs, greedy = self.policy.run(batch, scores)
        lengths = [len(continuation) for _, continuation in pairs]
        parts = zip(
            logprobs.double().cpu().split(lengths), greedy.cpu().split(lengths), strict=True
        )
        return [(one.sum().item(), bool(likeliest.all())) for one, likeliest in parts]


def _sampling(options: dict[str, Any]) -> Sampling:
    """What a task asks for, by the names of transformers."""
    until = options.get("until") or []
    sampled = options.get("do_sample", options.get("temperature", 0) > 0)
    return Sampling(
        max_new_tokens=options.get("max_gen_toks", options.get("max_new_tokens", 256)),
        temperature=options.get("temperature", 1.0) if sampled else 0.0,
        top_p=options.get("top_p", 1.0),
        top_k=options.get("top_k", 0),
        stop=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
    )


def _until(text: str, stops: Sequence[str]) -> str:
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
