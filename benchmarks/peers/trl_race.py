"""TRL: its ``GRPOTrainer`` as one would use it, from prompts to new weights."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.race_tasks import EPSILON, LOSS_TYPE, MAX_GRAD_NORM, Race, Turns, digits


def run(race: Race, folder: Path, seed: int, device: str, turns: Turns) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokens, reward = 0, 0.0

    def rule(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        nonlocal tokens, reward
        rewards = digits(completions)
        tokens, reward = sum(map(len, completion_ids)), fmean(rewards)
        return rewards

    class Steps(TrainerCallback):
        """A step begins where the one before it ends: a new batch, and its rollout, follow."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            turns.end(tokens, reward)
            if state.global_step < race.steps:
                turns.begin()

    config = GRPOConfig(
        str(folder / "trl"),
        use_cpu=device == "cpu",
        bf16=False,
        seed=seed,
        per_device_train_batch_size=race.prompts * race.group,
        num_generations=race.group,
        max_completion_length=race.completion,
        max_steps=race.steps,
        learning_rate=race.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        loss_type=LOSS_TYPE,
        epsilon=EPSILON,
        beta=0.0,  # no reference
        temperature=1.0,
        # What costs time and is nobody else's here.
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        rule,
        config,
        train_dataset=Dataset.from_dict({"prompt": race.texts(seed)}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
