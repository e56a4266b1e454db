"""Small GRPO trainers, TRL's and ours, and the comparison of a micro-batch between them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")
pytest.importorskip("datasets")
import datasets
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz"]
V, B, P, C = len(WORDS), 4, 3, 5


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def model(**changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    sizes = {
        "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.4,
    }  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**sizes | changes))


def reward(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") + 0.1 * text.count("e") for text in completions]


def trainer(
    kind: type[trl.GRPOTrainer], folder: Path, policy: Any, peft: Any = None, **options: Any
) -> Any:
    settings = {
        "per_device_train_batch_size": B, "num_generations": 4, "max_completion_length": C,
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.1,
        "temperature": 0.9, "max_steps": 3, "seed": 7, "gradient_checkpointing": False,
    }  # fmt: skip
    return kind(
        policy,
        reward,
        trl.GRPOConfig(str(folder), **settings | options),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a b c", "d e", "f", "g h i j"]}),
        processing_class=tokenizer(),
        peft_config=peft,
    )


def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(2, V, (B, P + C), generator=rng)
    prompt = torch.arange(P) >= torch.tensor([0, 1, 2, 0])[:, None]
    completion = torch.arange(C) < torch.tensor([5, 2, 4, 1])[:, None]

    def near(scale: float) -> Tensor:
        return -3 + scale * torch.randn(B, C, generator=rng)

    return {
        "prompt_ids": ids[:, :P].where(prompt, 0),
        "prompt_mask": prompt.long(),
        "completion_ids": ids[:, P:].where(completion, 0),
        "completion_mask": completion.long(),
        "advantages": torch.tensor([1.2, -0.6, 0.3, -0.9]),
        "old_per_token_logps": near(1.0),
        "ref_per_token_logps": near(1.0),
        "num_items_in_batch": torch.tensor(31),
    }


def compare(
    pair: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    batch: dict[str, Tensor],
) -> None:
    """Loss, gradients and logged metrics of one micro-batch under changed attributes."""
    results = []
    for each in pair:
        for name, value in changes.items():
            monkeypatch.setattr(each.args if hasattr(each.args, name) else each, name, value)
            if hasattr(each, name):
                monkeypatch.setattr(each, name, value)
        monkeypatch.setattr(each, "_entropy_bonus_enabled", each.entropy_coef != 0)
        monkeypatch.setattr(
            each, "_metrics", {"train": defaultdict(list), "eval": defaultdict(list)}
        )
        monkeypatch.setattr(each, "current_gradient_accumulation_steps", 2, raising=False)
        each.model.train()
        each.model.zero_grad()
        loss = each._compute_loss(each.model, batch)
        loss.backward()
        gradients = {name: p.grad for name, p in each.model.named_parameters()}
        results.append((loss.detach(), gradients, dict(each._metrics["train"])))
    theirs, ours = results
    theirs[2].pop("vespo/phi_seq_mean", None)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)
