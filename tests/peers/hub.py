"""What TRL's tests load from the hub, made here: tiny models, a tokenizer and a data set.

    python -m peers.hub FOLDER

A folder of the name of a repository is taken for it by whoever runs in the folder above.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

OWNER = "trl-internal-testing"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 4}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2", "ForCausalLM", {}),
    "small-Qwen2ForCausalLM-2.5": ("Qwen2", "ForCausalLM", {"hidden_size": 32}),
    "tiny-Qwen3ForCausalLM": ("Qwen3", "ForCausalLM", {"head_dim": 4}),
    "tiny-Gemma2ForCausalLM": ("Gemma2", "ForCausalLM", {"head_dim": 4}),
    "tiny-GptOssForCausalLM": (
        "GptOss",
        "ForCausalLM",
        {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "tiny-LlamaForSequenceClassification-3.2": (
        "Llama",
        "ForSequenceClassification",
        {"num_labels": 1},
    ),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3Moe", "ForCausalLM", EXPERTS),
    "tiny-MistralForCausalLM-0.2": ("Mistral", "ForCausalLM", {"head_dim": 4}),
    "tiny-LlamaForCausalLM-3.2": ("Llama", "ForCausalLM", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": (
        "Qwen2", "ForSequenceClassification", {"num_labels": 1},
    ),
}  # fmt: skip
PROMPTS = (
    "Beautiful is better than", "Explicit is", "Simple is better", "Complex is", "Flat is",
    "Sparse is better", "Readability", "Special cases are", "Although practicality beats",
    "Errors should never", "Unless explicitly", "In the face of ambiguity, refuse", "There should",
    "Now is better", "If the implementation is hard", "Namespaces are one", "Although never is",
)  # fmt: skip


def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[2],
        additional_special_tokens=SPECIAL[1:2], chat_template=TEMPLATE,
    )  # fmt: skip


def make(folder: Path) -> None:
    words = tokenizer()
    for name, (family, kind, changes) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            **SIZES | {"vocab_size": len(words)} | changes
        )
        place = folder / OWNER / name
        getattr(transformers, family + kind)(config).save_pretrained(place)
        words.save_pretrained(place)
    data(folder / OWNER / "zen")


def data(folder: Path) -> None:
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rows = {
        "standard_prompt_only": [{"prompt": prompt} for prompt in PROMPTS],
        "conversational_prompt_only": [{"prompt": chat} for chat in chats],
    }
    folder.mkdir(parents=True)
    configs = []
    for name, lines in rows.items():
        for split, part in (("train", lines), ("test", lines[:2])):
            text = "".join(json.dumps(line) + "\n" for line in part)
            (folder / f"{name}-{split}.jsonl").write_text(text)
        files = "\n".join(
            f"  - split: {split}\n    path: {name}-{split}.jsonl" for split in ("train", "test")
        )
        configs.append(f"- config_name: {name}\n  data_files:\n{files}")
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
