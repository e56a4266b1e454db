"""The built-in rollout engine: it decodes with the trainer's modules, or a copy of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.rollout import RolloutConfig
from r1train.data.encode import distinct
from r1train.engine.base import Request, Rollout, Sampling, tolerance_of
from r1train.engine.cuda_graph import Graphs
from r1train.engine.decode import Decoding, Sampled, Work
from r1train.engine.grid import most_slots
from r1train.engine.noise import stream_keys
from r1train.engine.sampling import bytes_of_row
from r1train.engine.shared_prefix import SharedPrefix, prefix_for
from r1train.engine.stopping import StopStrings, stop_tokens
from r1train.engine.sync import SyncError, check_names, same_memory, weights_of
from r1train.engine.workspace import (
    PREFILL_SHARE,
    SHARE,
    Workspace,
    bytes_of_pass,
    memory_of,
    rows_that_fit,
)
from r1train.model.lora import merged_copy


class BuiltinEngine:
    """Samples from `model` as it is at the moment, or from a copy of it in another dtype.

    Args:
        batch_size: completions that are decoded at the same time, at most.
        max_memory_gib: for what decoding needs beside the weights; unset: a quarter of
            the device's. Smaller batches follow, which change no completion but by rounding.
        dtype: of the copy; unset: there is none, and no weights to send.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 256,
        max_memory_gib: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.shares = dtype is None
        self.model = model if dtype is None else _copied(model, dtype)
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.max_memory_gib = max_memory_gib
        self.version, self.warned = 0, False
        self.sampling_tolerance = tolerance_of(self.model)
        self.stop = torch.tensor(stop_tokens(model, tokenizer), device=model.device)
        self.workspace = Workspace(model.device)
        self.prefix, reason = prefix_for(self.model, self.workspace)
        if reason is not None:
            logging.getLogger("r1train").warning(
                "rollouts keep a copy of the prompt for every completion, which is slower: %s: %s",
                type(model).__name__,
                reason,
            )
        captured = model.device.type == "cuda" and isinstance(self.prefix, SharedPrefix)
        self.graphs = Graphs() if captured else None

    @classmethod
    def from_config(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig
    ) -> BuiltinEngine:
        """The engine that the section `rollout` of a recipe describes."""
        return cls(
            model,
            tokenizer,
            batch_size=config.batch_size,
            max_memory_gib=config.max_memory_gib,
            dtype=None if config.dtype is None else getattr(torch, config.dtype),
        )

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies `weights` into the engine's own, or sees that they are the same tensors.

        Raises:
            SyncError: names or shapes are not the model's, or it shares other tensors.
        """
        sent, held = dict(weights), self.weights()
        check_names(sent, held)
        for name, tensor in sent.items():
            if not self.shares:
                held[name].copy_(tensor)
            elif not same_memory(held[name], tensor):
                raise SyncError(
                    f"the rollout engine shares the trainer's modules, and was sent another {name} "
                    "than theirs: give it rollout.dtype, so that it keeps a copy"
                )
        self.version = version

    def weights(self) -> Mapping[str, Tensor]:
        """What it samples from."""
        return weights_of(self.model)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Rollout:
        """`n` completions of every request.

        Completion j of a request depends on its prompt, its seed and j alone: every token has a
        random number of its own, whoever else is in the batch.

        Raises:
            NotANumber: a log-probability is NaN, so the next token would mean nothing.
            RunError: not even one completion fits into the memory.
        """
        for index, request in enumerate(requests):
            if not request.prompt_ids or request.n < 1:
                raise ValueError(
                    f"generate: request {index}: expected a prompt of at least one token and "
                    f"n >= 1, got {len(request.prompt_ids)} tokens and n = {request.n}"
                )
        if not requests:
            raise ValueError("generate: requests: expected at least one, got none")
        rows = [(index, j) for index, request in enumerate(requests) for j in range(request.n)]
        size, prompts_at_once = self._sizes(requests, sampling)
        parts = [
            self._decode(
                [(requests[index], j) for index, j in rows[start : start + size]],
                sampling,
                prompts_at_once,
            )
            for start in range(0, len(rows), size)
        ]
        lengths = [0, *itertools.accumulate(length for part in parts for length in part.lengths)]
        routing = [ids for part in parts for ids in part.routing]
        return Rollout(
            [list(request.prompt_ids) for request in requests],
            [index for index, _ in rows],
            torch.cat([part.tokens for part in parts]),
            torch.tensor(lengths, dtype=torch.int32, device=self.model.device),
            torch.cat([part.logprobs for part in parts]),
            [finished for part in parts for finished in part.finished],
            routing or None,
            self.version,
        )

    def _decode(
        self, rows: Sequence[tuple[Request, int]], sampling: Sampling, prompts_at_once: int
    ) -> Sampled:
        prompts, prompt_of = distinct([request.prompt_ids for request, _ in rows])
        keys = stream_keys([request.seed for request, _ in rows], [j for _, j in rows])
        strings = StopStrings(self.tokenizer, sampling.stop) if sampling.stop else None
        work = Work(prompts, prompt_of, keys, sampling, self.stop, strings, prompts_at_once)
        return Decoding(self.model, self.prefix, self.workspace, work, self.graphs).run()

    def _sizes(self, requests: Sequence[Request], sampling: Sampling) -> tuple[int, int]:
        """How many completions are decoded at the same time, and prompts prefilled."""
        longest = max(len(request.prompt_ids) for request in requests)
        tokens, vocabulary = sampling.max_new_tokens, self.model.config.get_text_config().vocab_size
        slots = most_slots(self.model.device)
        logits = bytes_of_row(vocabulary, self.model.device, sampling)
        per_token = self.prefix.bytes_per_token + Decoding.bytes_per_token(self.model)
        of_length = int(slots * tokens * per_token)
        bytes_per_row = of_length + int(slots * (longest * self.prefix.bytes_per_token + logits))
        bytes_per_prompt = longest * (bytes_of_pass(self.model) + self.prefix.bytes_per_token)
        if self.max_memory_gib is None:
            bound = SHARE * memory_of(self.model.device)
        else:
            bound = self.max_memory_gib * 2**30
        prompts = 1
        if self.prefix.in_parts:
            prompts = max(1, min(len(requests), int(PREFILL_SHARE * bound) // bytes_per_prompt))
            beside = prompts * bytes_per_prompt
        else:
            bytes_per_row, beside = bytes_per_row + bytes_per_prompt, 0
        size = rows_that_fit(bytes_per_row, self.batch_size, int(bound), beside, of_length)
        at_once = min(size, sum(request.n for request in requests))
        self._warn_of_memory(at_once * bytes_per_row + beside)
        return size, prompts

    def _warn_of_memory(self, needed: int) -> None:
        """Once, where decoding is going to take more than training and others leave."""
        if self.warned or needed <= (free := self.workspace.room()):
            return
        self.warned = True
        logging.getLogger("r1train").warning(
            "rollouts may take %.3g GiB of memory beside the weights, and %.3g are free: if there "
            "is too little, give them less by rollout.max_memory_gib",
            *(needed / 2**30, free / 2**30),
        )


def _copied(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The parameters alone in `dtype`: buffers, such as frequencies and routers' biases, stay.

    Adapters are merged, as they are in the weights that it will be sent.
    """
    found = merged_copy(model).requires_grad_(False)
    for parameter in found.parameters():
        if parameter.is_floating_point() and parameter.itemsize > 1:  # not the codes of FP8
            parameter.data = parameter.data.to(dtype)
    return found
