"""pack against a loop over positions, and against the loss that is made of padded logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels

B, L, H, V = 5, 9, 6, 31
# Left padding, right padding, a hole as of a tool's output, a row without tokens, the last alone.
MASK = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
)
DTYPES = [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(B, L, H, dtype=dtype, requires_grad=True), torch.randint(V, (B, L))


def looped(hidden_states: Tensor, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """One position after the other, as a reader would write it down."""
    hidden, target, ends = [], [], [0]
    for row in range(len(mask)):
        for t in range(1, mask.shape[1]):
            if mask[row, t]:
                hidden.append(hidden_states[row, t - 1])
                target.append(input_ids[row, t])
        ends.append(len(target))
    return torch.stack(hidden), torch.stack(target), torch.tensor(ends, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_loop(dtype: torch.dtype) -> None:
    hidden_states, input_ids = inputs()
    packed = r1kernels.pack(hidden_states, input_ids, MASK.to(dtype))
    expected = looped(hidden_states, input_ids, MASK)
    for got, wanted in zip(packed, expected, strict=True):
        assert torch.equal(got, wanted)
        assert got.dtype == wanted.dtype
    assert packed.cu_seqlens.tolist() == [0, 5, 9, 14, 14, 15]


def test_a_mask_of_the_last_positions() -> None:
    hidden_states, input_ids = inputs()
    last = MASK[:, -4:]
    whole = torch.cat([torch.zeros(B, L - 4), last], 1)
    for got, wanted in zip(
        r1kernels.pack(hidden_states, input_ids, last),
        r1kernels.pack(hidden_states, input_ids, whole),
        strict=True,
    ):
        assert torch.equal(got, wanted)
    # Its first column has a position before it.
    assert len(r1kernels.pack(hidden_states, input_ids, torch.ones(B, L - 1)).target) == B * (L - 1)


def test_gradients_go_to_the_positions_that_predict() -> None:
    hidden_states, input_ids = inputs(torch.float64)
    upstream = torch.randn(int(MASK.sum()), H, dtype=torch.float64)
    got, expected = (
        torch.autograd.grad(
            (make(hidden_states, input_ids, MASK)[0] * upstream).sum(), hidden_states
        )
        for make in (r1kernels.pack, looped)
    )
    assert torch.equal(got[0], expected[0])
    predicts = torch.cat([MASK[:, 1:], torch.zeros(B, 1)], 1).bool()
    assert torch.equal(got[0].any(-1), predicts)


@pytest.mark.parametrize("shape", [(0, L), (B, 0), (B, 1), (B, L)], ids=str)
def test_nothing_to_pack(shape: tuple[int, int]) -> None:
    packed = r1kernels.pack(
        torch.randn(*shape, H), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    )
    assert packed.hidden.shape == (0, H)
    assert packed.target.shape == (0,)
    assert packed.cu_seqlens.tolist() == [0] * (shape[0] + 1)


def padded_loss(
    logits: Tensor, input_ids: Tensor, mask: Tensor, advantages: Tensor, old: Tensor
) -> Tensor:
    """TRL's GRPO loss: logits shifted against the tokens, mean of the completions' means."""
    logprob = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]
    logprob, mask = logprob[:, -mask.shape[1] :], mask[:, -logprob.shape[1] :]
    ratio = (logprob - old[:, -mask.shape[1] :]).exp()
    each = -torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
    return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@pytest.mark.parametrize("columns", [L, 4], ids=["whole", "completions"])
def test_the_loss_of_what_was_packed_is_that_of_the_padded(columns: int) -> None:
    hidden_states, input_ids = inputs(torch.float64)
    weight = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -0.5, 0.7, 2.0, -1.0], dtype=torch.float64)
    mask = MASK[:, -columns:]
    old = -3 + 0.3 * torch.randn(B, columns, dtype=torch.float64)

    packed = r1kernels.pack(hidden_states, input_ids, mask)
    got = r1kernels.fused_linear_grpo_loss(
        packed.hidden, weight, packed.target, cu_seqlens=packed.cu_seqlens,
        advantages=advantages, old_logprob=old[mask.bool()],
    ).loss  # fmt: skip
    expected = padded_loss(hidden_states @ weight.T, input_ids, mask, advantages, old)
    torch.testing.assert_close(got, expected)
    leaves = (hidden_states, weight)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves)
    )


def test_values_of_tokens_go_there_and_back() -> None:
    values, mask = torch.randn(B, L), MASK.bool()
    packed = values[mask]
    assert torch.equal(torch.zeros(B, L).masked_scatter(mask, packed), values.where(mask, 0))


@pytest.mark.parametrize("masked", ["int64", "bool"])
def test_compiles(masked: str) -> None:
    torch.compiler.reset()
    hidden_states, input_ids = inputs()
    mask = MASK.to(getattr(torch, masked), copy=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(r1kernels.pack, fullgraph=True, backend="aot_eager")
        got, expected = (
            pack(hidden_states, input_ids, mask) for pack in (compiled, r1kernels.pack)
        )
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
        mask[1, 0] = 1
        with pytest.raises(RuntimeError, match="completion_mask: expected 0 at position 0"):
            compiled(hidden_states, input_ids, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion_mask": torch.ones(B, L)},
         r"completion_mask\[0, 0\]: expected 0, since no position before .* not shifted"),
        ({"completion_mask": 2 * MASK}, r"completion_mask\[0, 4\]: expected 0 or 1, got 2"),
        ({"completion_mask": torch.where(MASK == 1, 5, -100)},
         r"completion_mask\[0, 0\]: expected 0 or 1, got -100 \(of labels, labels != -100 is"),
        ({"completion_mask": torch.zeros(B, L + 1)}, r"completion_mask: expected C ≤ L = 9"),
        ({"completion_mask": torch.zeros(B + 1, L)}, "completion_mask: expected B = 5"),
        ({"completion_mask": MASK[0]}, r"completion_mask: expected shape \[B, C\], got \[9\]"),
        ({"hidden_states": torch.zeros(B, L - 1, H)},
         r"hidden_states: expected L = 9 in shape \[B, L, H\], got \[5, 8, 6\] \(L is that of"),
        ({"input_ids": torch.zeros(B, L)}, "input_ids: expected dtype int64 or int32"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    hidden_states, input_ids = inputs()
    given = {"hidden_states": hidden_states, "input_ids": input_ids, "completion_mask": MASK}
    with pytest.raises((ValueError, TypeError), match=f"pack: {message}"):
        r1kernels.pack(**{**given, **change})
