"""HuggingFace transformers: a step of GRPO as one writes it with its models, and its generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.adapt import Peer
from benchmarks.tasks import plain_logprob
from benchmarks.train_tasks import EPSILON, Task, padded, take_gradients


def update(task: Task) -> Callable[[], tuple[Tensor, ...]]:
    return partial(learn, task)


def rollout(task: Task) -> Callable[[], tuple[Tensor]]:
    return partial(decode, task)


def learn(task: Task) -> tuple[Tensor, ...]:
    """Loss and gradients, in micro-batches of texts of about the same length."""
    from r1train.learn.batch import micro_batches

    total = task.advantages.new_zeros(())
    for rows in micro_batches(task.prompts, task.completions, task.token_budget):
        loss = clipped_sum(task, rows) / task.tokens
        loss.backward()
        total += loss.detach()
    return total, *take_gradients(task.model)


def clipped_sum(task: Task, rows: Sequence[int]) -> Tensor:
    """Over the tokens of the completions. The logits begin where the shortest prompt ends."""
    device = task.advantages.device
    texts = [torch.tensor([*task.prompts[row], *task.completions[row]]) for row in rows]
    ids = pad_sequence(texts, batch_first=True).to(device)  # on the right: nothing to mask
    start = torch.tensor([len(task.prompts[row]) for row in rows], device=device)
    lengths = torch.tensor([len(task.completions[row]) for row in rows], device=device)
    first = min(len(task.prompts[row]) for row in rows)
    place = torch.arange(first, ids.shape[1], device=device)
    wanted = (place >= start[:, None]) & (place < (start + lengths)[:, None])
    logits = task.model(ids, use_cache=False, logits_to_keep=len(place) + 1).logits
    logprob = plain_logprob(logits[:, :-1][wanted], ids[:, first:][wanted])
    advantage = task.advantages[list(rows)].repeat_interleave(lengths)
    ratio = (logprob - logprob.detach()).exp()
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    return -torch.minimum(ratio * advantage, clipped * advantage).sum()


def decode(task: Task) -> tuple[Tensor]:
    """Tokens [B, N], the most likely each; there is no token that would end a text."""
    ids, mask = padded(task.prompts, "left")
    texts = task.model.generate(
        input_ids=ids.to(task.model.device),
        attention_mask=mask.to(task.model.device),
        do_sample=False,
        max_new_tokens=task.longest,
    )
    return (texts[:, ids.shape[1] :],)


PEERS = (Peer("hf", {"update": update, "rollout": rollout}, needs=("transformers",)),)
