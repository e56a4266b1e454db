"""Stands in for a model of your own: writes a tiny Llama and its tokenizer to ./checkpoint.

It has learnt, in some seconds, what the answers are, but answers in R1-Zero's format only half of
the time: able, but unreliable, which is what GRPO changes.
"""

import json
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r1train.model.presets import mini_tokenizer

HERE = Path(__file__).parent
STEPS, BATCH = 120, 48


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = (HERE / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines]
    prompts = [f"User: {problem['prompt']} Assistant:" for problem in problems]
    tokenizer = mini_tokenizer(prompts)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draw = random.Random(0)
    for _ in range(STEPS):
        texts = []
        for i in draw.choices(range(len(problems)), k=BATCH):
            answer = problems[i]["answer"]
            thought = problems[i]["prompt"].removeprefix("What is ").removesuffix("?")
            # The teacher forgets the tags half of the time, and an answer without them is none.
            tagged = f"<think>{thought}</think><answer>{answer}</answer>"
            text = draw.choice((tagged, f"{thought} is {answer}"))
            texts.append(prompts[i] + text + tokenizer.eos_token)
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(HERE / "checkpoint")
    tokenizer.save_pretrained(HERE / "checkpoint")


if __name__ == "__main__":
    main()
