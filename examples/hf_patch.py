"""A HuggingFace model without logits: the loss, log-probabilities, and a mixture of experts.

The model is a tiny Qwen3-MoE made on the spot; `from_pretrained` does as well.
"""

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from r1kernels import hf


def main() -> None:
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=99,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            moe_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            max_position_embeddings=64,
        )
    )
    hf.patch(model)  # before a trainer, DDP or torch.compile wraps it

    ids = torch.randint(99, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(5):
        loss = model(ids, labels=ids).loss  # the cross-entropy; logits are never made
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    # Of each token after the first, [B, S]; and the routing of one pass, replayed in another.
    with torch.no_grad(), hf.record_routing(model) as record:
        sampled = hf.logprobs(model, ids, temperature=0.7, entropy=True)
    (routes,) = record.take()  # [tokens, layers, k]
    with hf.replay_routing(model, routes) as replay:
        trained = hf.logprobs(model, ids, temperature=0.7)
    difference = (trained.logprob - sampled.logprob).abs().max()
    print(f"mean entropy {sampled.entropy.mean():.2f}, largest difference {difference:.1e}")
    print(f"experts that would have been others: {float(replay.differing):.0%}")

    # A policy loss of the last 6 tokens of each row, whose first 6 are the prompt.
    fused = hf.grpo_loss(
        model,
        ids,
        torch.ones_like(ids),
        torch.ones(4, 6),
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        loss_type="dapo",
    )
    fused.loss.backward()

    print(model.generate(ids[:1, :4], max_new_tokens=4, do_sample=False).tolist())  # as ever
    hf.unpatch(model)


if __name__ == "__main__":
    main()
