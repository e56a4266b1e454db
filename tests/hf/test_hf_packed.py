"""Packed rows through HuggingFace models against every sequence by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels import hf
from r1kernels.attention.packed_attention import PACKED_ATTENTION, PACKED_ATTENTION_BACKWARD
from r1kernels.hf.attention import packed_flash

pytest.importorskip("transformers")

V = 64
PROMPTS = ((3, 14, 15, 9), (2, 7))
# (prompt, completion)
COMPLETIONS = ((0, (1, 8, 2)), (0, (8,)), (1, (4, 5, 9, 4, 5)), (1, (2, 3)))
SMALL = {
    "vocab_size": V, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
# DeepSeek-V3's: heads of 24 for queries and keys, and of 16 for values.
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "num_mtp_layers": 0,
    "num_key_value_heads": 6,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {"Llama": {}, "Qwen2": {}, "DeepseekV3": LATENT}


def tiny(family: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**SMALL | FAMILIES.get(family, {}) | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.double()
    if family == "DeepseekV3":
        model.set_experts_implementation("eager")  # the others take no float64
    return model


def packed_row() -> tuple[Tensor, Tensor, hf.Packing]:
    """Tokens, their positions and the packing: prompts, then completions."""
    parts = [*PROMPTS, *(completion for _, completion in COMPLETIONS)]
    before = [-1] * len(PROMPTS) + [prompt for prompt, _ in COMPLETIONS]
    start = [0 if p < 0 else len(PROMPTS[p]) for p in before]
    positions = [s + i for s, part in zip(start, parts, strict=True) for i in range(len(part))]
    tokens = torch.tensor([[token for part in parts for token in part]])
    return tokens, torch.tensor([positions]), hf.pack_segments([*map(len, parts)], before)


def alone(model: Any) -> Tensor:
    """Hidden states in the order of the packed row, from a pass of each sequence by itself."""
    rows = [model.base_model(torch.tensor([p]), use_cache=False)[0][0] for p in PROMPTS]
    for prompt, completion in COMPLETIONS:
        ids = torch.tensor([PROMPTS[prompt] + completion])
        hidden = model.base_model(ids, use_cache=False)[0][0]
        rows.append(hidden[len(PROMPTS[prompt]) :])
    return torch.cat(rows)


def gradients(model: Any, hidden: Tensor) -> list[Tensor]:
    upstream = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    weights = [p for p in model.base_model.parameters() if p.requires_grad]
    found = torch.autograd.grad(hidden, weights, upstream, allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_each_sequence(family: str) -> None:
    model = tiny(family)
    assert hf.packed_refusal(model) is None
    expected = alone(model)
    slopes = gradients(model, expected)
    tokens, positions, packing = packed_row()
    hf.register_packed()
    model.set_attn_implementation("r1_packed")
    found = model.base_model(tokens, position_ids=positions, use_cache=False, packing=packing)[0][0]
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(model, found), slopes, strict=True):
        # The norms round gradients to float32, here of all sequences together.
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two calls of flash attention in plain PyTorch, with the signatures of packed_flash."""

    def parts(of: packed_flash.Sequences) -> list[tuple[slice, slice]]:
        queries, keys = of.queries.tolist(), of.keys.tolist()
        return [
            (slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1]))
            for i in range(len(queries) - 1)
        ]

    def as_segments(run: Callable[..., None], of: packed_flash.Sequences) -> None:
        """As packed_attention has it: of keys that all are seen, those of a prefix."""
        for q, k in parts(of):
            if q.start < q.stop:
                run(q, k)

    def weights(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
        group = query.shape[1] // key.shape[1]
        scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(group, 1)) * scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1) & causal
        return scores.masked_fill(hidden, -torch.inf)

    def forward(query: Tensor, key: Tensor, value: Tensor, of: Any, scale: float) -> Any:
        assert of.longest_queries == of.queries.diff().max()
        assert of.longest_keys == of.keys.diff().max()
        out, lse = torch.zeros_like(query), query.new_zeros(query.shape[1], query.shape[0])
        group = query.shape[1] // key.shape[1]

        def run(q: slice, k: slice) -> None:
            scores = weights(query[q], key[k], of.causal, scale)
            lse[:, q] = scores.logsumexp(-1)
            rows = value[k].repeat_interleave(group, 1)
            out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), rows)

        as_segments(run, of)
        return out, lse

    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, of: Any,
        scale: float,
    ) -> Any:  # fmt: skip
        found = [torch.zeros_like(x) for x in (query, key, value)]
        group = query.shape[1] // key.shape[1]
        delta = (grad * out).sum(-1).T

        def run(q: slice, k: slice) -> None:
            p = (weights(query[q], key[k], of.causal, scale) - lse[:, q, None]).exp()
            keys, rows = (x[k].repeat_interleave(group, 1) for x in (key, value))
            slope = torch.einsum("qhd,khd->hqk", grad[q], rows) - delta[:, q, None]
            slope = p * slope * scale
            found[0][q] += torch.einsum("hqk,khd->qhd", slope, keys)
            for i, (left, right) in ((1, (slope, query)), (2, (p, grad))):
                of_heads = torch.einsum("hqk,qhd->khd", left, right[q])
                found[i][k] += of_heads.unflatten(1, (-1, group)).sum(2)

        as_segments(run, of)
        return tuple(found)

    monkeypatch.setattr(packed_flash, "flash_forward", forward)
    monkeypatch.setattr(packed_flash, "flash_backward", backward)


def test_two_calls_merged_by_log_sum_exp_are_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, but for the kernels: values narrower than keys, both of odd widths."""
    plain_calls(monkeypatch)
    packing = packed_row()[2]
    tokens = int(packing.cu_seqlens[-1])
    shapes = (6, 13), (2, 13), (2, 11)
    inputs = [torch.randn(tokens, *s, dtype=torch.float64, requires_grad=True) for s in shapes]
    found = packed_flash.packed_flash(*inputs, packing, 0.3)
    detached = [x.detach() for x in inputs]
    out, lse = PACKED_ATTENTION(*detached, packing.cu_seqlens, packing.prefix, 0.3)
    torch.testing.assert_close(found.detach(), out)
    upstream = torch.randn_like(out)
    expected = PACKED_ATTENTION_BACKWARD(
        upstream, *detached, out, lse, packing.cu_seqlens, packing.prefix, 0.3
    )
    for ours, theirs in zip(torch.autograd.grad(found, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("lengths", "prefix", "message"),
    [
        ([3, 2], [-1], "prefix: expected one for each length"),
        ([3, 2, 4], [-1, 0, -1], "prefix: expected −1 for the first segments"),
        ([3, 2, 4, 4], [-1, -1, 1, 0], "prefix: expected .* never falling"),
        ([3, 2], [-1, 1], "prefix: expected .* segments among these"),
        ([0, 2], [-1, 0], "lengths: expected a token or more in every prefix"),
    ],
)
def test_segments_in_another_order_are_refused(
    lengths: list[int], prefix: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"pack_segments: {message}"):
        hf.pack_segments(lengths, prefix)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Mistral", {"sliding_window": 8}, "sliding_window = 8"),
        ("Gemma2", {"head_dim": 8}, "layers of other kinds: sliding_attention"),
        ("GptOss", {"head_dim": 8, "num_local_experts": 2}, "layers of other kinds"),
        ("Llama", {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
    ],
)
def test_what_another_attention_computes_is_refused(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    model = tiny(family, **changes).train()
    assert reason in str(hf.packed_refusal(model))


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux", "dropout"])
def test_the_function_refuses_what_it_does_not_compute(option: str) -> None:
    from r1kernels.hf.attention.packed import packed_forward

    packing = packed_row()[2]
    x = torch.zeros(1, 2, int(packing.cu_seqlens[-1]), 8)
    packed_forward(torch.nn.Identity(), x, x, x, None, packing=packing)
    with pytest.raises(ValueError, match=f"r1_packed: {option}: expected none"):
        packed_forward(torch.nn.Identity(), x, x, x, None, packing=packing, **{option: 4})
    with pytest.raises(ValueError, match="r1_packed: packing: expected what pack_segments makes"):
        packed_forward(torch.nn.Identity(), x, x, x, None)
