"""Supervised fine-tuning: a cold start, or what stands in for pre-training."""

from __future__ import annotations

import random
from collections.abc import Mapping
from operator import add
from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.demonstrations import demonstration
from r1train.data.encode import encode_prompts
from r1train.learn.sft import SupervisedLearner
from r1train.model.limits import check_sequences, positions
from r1train.seeds import derive_seed
from r1train.stages.base import Context, TrainStage


class SFT(TrainStage):
    """Next-token prediction on demonstrations, `sft.max_steps` batches of them."""

    uses = ("task", "sft", "eval")
    shown = ("loss",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.config = context.config.sft
        self.max_steps, self.save_steps = self.config.max_steps, self.config.save_steps
        self.learner = SupervisedLearner(context.policy, self.config)

    def update(self) -> dict[str, float]:
        context, config, tokenizer = self.context, self.config, self.context.tokenizer
        rng = random.Random(derive_seed(context.seed, "sft", self.step))
        chosen = [rng.choice(context.train) for _ in range(config.batch_size)]
        prompts = encode_prompts(tokenizer, chosen, context.config.task.prompt_template)
        texts = [demonstration(problem, config, rng) + tokenizer.eos_token for problem in chosen]
        completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
        check_sequences(context.model, tokenizer, completions)
        longest, limit = max(map(len, map(add, prompts, completions))), positions(context.model)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"a problem and its worked solution have {longest} tokens, and the model {limit} "
                "positions: make the problems of task.datasets shorter"
            )
        metrics = self.learner.step(prompts, completions)
        self.step += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.learner.load_state_dict(state["learner"])
