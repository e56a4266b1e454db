"""GRPO in a loop of your own, with one kernel: `fused_linear_grpo_loss`.

The policy is any PyTorch module that gives hidden states and has a head; this one is a GRU that
learns to count upwards. Nothing but torch and r1kernels is needed.
"""

import torch
from torch import Tensor, nn

import r1kernels

VOCABULARY, WIDTH, LENGTH = 16, 64, 8  # ids, hidden size, tokens of a completion
PROMPTS, GROUP, STEPS = 8, 16, 60


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, S] → [B, S, H]; position s predicts the id at s + 1."""
        return self.rnn(self.embed(ids))[0]

    @torch.no_grad()
    def sample(self, prompt: Tensor) -> Tensor:
        """[B, 1] → [B, 1 + LENGTH]"""
        ids = prompt
        for _ in range(LENGTH):
            logits = self.head(self.hidden(ids)[:, -1])
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        return ids


def reward(ids: Tensor) -> Tensor:
    """[B, 1 + LENGTH] → [B]: the share of tokens that are one more than the token before."""
    return ((ids[:, 1:] - ids[:, :-1]) % VOCABULARY == 1).float().mean(1)


def main() -> None:
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    count = PROMPTS * GROUP
    completion = torch.ones(count, 1 + LENGTH, dtype=torch.bool)
    completion[:, 0] = False  # the prompt
    for step in range(STEPS):
        prompt = torch.randint(VOCABULARY, (PROMPTS, 1)).repeat_interleave(GROUP, 0)
        ids = policy.sample(prompt)
        rewards = reward(ids)
        # The completions' rows alone, one after the other, each with the id that it predicts.
        hidden, target, starts = r1kernels.pack(policy.hidden(ids), ids, completion)
        out = r1kernels.fused_linear_grpo_loss(
            hidden,
            policy.head.weight,
            target,
            cu_seqlens=starts,
            rewards=rewards,
            group_ids=torch.arange(PROMPTS).repeat_interleave(GROUP),
            loss_type="dr_grpo",
            max_completion_length=LENGTH,
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: reward {rewards.mean():.2f}")


if __name__ == "__main__":
    main()
