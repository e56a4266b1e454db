"""TRL: the loss of its ``GRPOTrainer``, from the texts to the gradients.

The trainer is a real one; what calls its loss is not, so that it learns from the given texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.train_tasks import EPSILON, LOSS_TYPE, Task, padded, take_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def update(task: Task) -> Callable[[], tuple[Tensor, ...]]:
    return partial(learn, trainer(task.model, len(task.prompts), task.group), task)


def learn(run: Any, task: Task) -> tuple[Tensor, ...]:
    total = task.advantages.new_zeros(())
    for part in parts(task):
        loss = run._compute_loss(run.model, part)
        run.accelerator.backward(loss)
        total += loss.detach()
    return total, *take_gradients(run.model)


def parts(task: Task) -> Iterator[dict[str, Tensor]]:
    """All are padded to the longest text of the rollout, as the trainer divides a rollout."""
    prompts, prompt_mask = padded(task.prompts, "left")
    completions, completion_mask = padded(task.completions, "right")
    rows = max(task.token_budget // (prompts.shape[1] + completions.shape[1]), 1)
    whole = {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "advantages": task.advantages,
    }
    device = task.advantages.device
    whole = {name: value.to(device) for name, value in whole.items()}
    tokens = torch.tensor(task.tokens, device=device)
    for some in torch.arange(len(prompts), device=device).split(rows):
        yield {name: value[some] for name, value in whole.items()} | {"num_items_in_batch": tokens}


@lru_cache(maxsize=1)
def trainer(model: PreTrainedModel, batch_size: int, group: int) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from r1train.model.presets import mini_tokenizer

    def reward(completions: list[str], **_: Any) -> list[float]:
        raise NotImplementedError("rewards are given")

    with TemporaryDirectory() as folder:  # it must have one, and writes nothing
        config = GRPOConfig(
            folder,
            use_cpu=model.device.type == "cpu",
            bf16=False,  # autocast; the model is in the dtype it is in
            gradient_checkpointing=False,  # nobody's here
            report_to="none",
            per_device_train_batch_size=batch_size,
            num_generations=group,
            loss_type=LOSS_TYPE,
            epsilon=EPSILON,
            beta=0.0,
            temperature=1.0,
        )
        made = GRPOTrainer(
            copy.deepcopy(model),
            reward,
            config,
            train_dataset=Dataset.from_dict({"prompt": [""]}),
            processing_class=mini_tokenizer(()),
        )
    made.current_gradient_accumulation_steps = 1  # the normaliser is that of all parts already
    made.model.train()
    return made
