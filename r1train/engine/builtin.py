"""The built-in rollout engine: KV cache, shared prompts, finished sequences leave the batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1kernels.hf import head_of
from r1train.data.encode import distinct
from r1train.engine.base import NotANumber, Rollout
from r1train.engine.sampling import sample
from r1train.model.forward import extend, prefill
from r1train.model.routing import Recording, recording


class Engine:
    """Samples from `model` as it is at the moment: there are no weights to synchronise."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 256
    ) -> None:
        configured = model.generation_config.eos_token_id if model.generation_config else None
        listed = configured if isinstance(configured, list) else [configured]
        stop = {tokenizer.eos_token_id, *listed} - {None}
        self.model, self.batch_size = model, batch_size
        self.stop = torch.tensor(sorted(stop), device=model.device)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Rollout:
        """One completion for every prompt; repeat a prompt to get more.

        Completion i depends on `prompts[i]`, `seed` and i alone: every token has a uniform number
        of its own, drawn on the CPU before the first step, whoever else is in the batch. With
        temperature 0 the most likely token is taken, and log-probabilities are those at 1.

        Raises:
            NotANumber: a log-probability is NaN, so the next token would mean nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (len(prompts), max_new_tokens)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        shared, row_of = distinct(prompts)
        tokens_of: list[Tensor] = []
        logprobs_of: list[Tensor] = []
        finished: list[bool] = []
        routing: list[Tensor] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            noise = uniform[part].to(self.model.device)
            record = recording(self.model)
            tokens, logprobs = self._decode(prompts[part], noise, temperature, top_p, record)
            if record is not None:
                routing += record.sequences(prompts[part])
            ends = torch.isin(tokens, self.stop)
            lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, max_new_tokens).tolist()
            for row, length in enumerate(lengths):
                tokens_of.append(tokens[row, :length])
                logprobs_of.append(logprobs[row, :length])
            finished.extend(ends.any(1).tolist())
        lengths = [0, *itertools.accumulate(map(len, tokens_of))]
        return Rollout(
            [list(prompt) for prompt in shared],
            row_of,
            torch.cat(tokens_of),
            torch.tensor(lengths, dtype=torch.int32, device=self.model.device),
            torch.cat(logprobs_of),
            finished,
            routing or None,
        )

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        uniform: Tensor,
        temperature: float,
        top_p: float,
        record: Recording | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [B, max_new_tokens]; what follows a stop is unspecified."""
        tokens = torch.full(uniform.shape, int(self.stop[0]), device=uniform.device)
        logprobs = torch.zeros(uniform.shape, device=uniform.device)
        rows = torch.arange(len(prompts), device=uniform.device)
        prefix = prefill(self.model, prompts, record)
        for step in range(uniform.shape[1]):
            logits = head_of(self.model).logits(prefix.hidden)
            token, logprob = sample(logits, uniform[rows, step], temperature, top_p)
            tokens[rows, step], logprobs[rows, step] = token, logprob
            going = ~torch.isin(token, self.stop)
            state = torch.stack([going.any(), going.all(), logprob.isnan().any()])
            any_going, all_going, failed = state.tolist()  # one wait for the device
            if failed:
                row = int(rows[logprob.isnan()][0])
                raise NotANumber(
                    f"the log-probability of token {step} after prompt {row} of its batch is NaN: "
                    "the model's logits hold NaN or infinity. Its weights may have diverged "
                    "(learning_rate, max_grad_norm), be damaged, or overflow in "
                    f"{str(self.model.dtype).removeprefix('torch.')}"
                )
            if not any_going or step + 1 == uniform.shape[1]:
                break
            if not all_going:
                keep = going.nonzero()[:, 0]
                prefix.select(keep)
                rows, token = rows[keep], token[keep]
            prefix.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(rows), 1)], 1)
            position = prefix.length[:, None]
            ids = token[:, None]
            hidden = extend(self.model, prefix.cache, ids, prefix.mask, position, record)
            if record is not None:
                record.rows[-1] = rows  # not all sequences are in the batch
            prefix.hidden = hidden[:, 0]
            prefix.length = prefix.length + 1
        return tokens, logprobs
