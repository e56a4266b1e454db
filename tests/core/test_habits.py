"""What is said to people who come from TRL, verl or Liger, or who slip: what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import r1kernels
from r1kernels.core.names import ELSEWHERE, nearest
from r1kernels.policy.fused_linear_grpo_loss import KEYWORDS

T, H, V, B, E = 12, 16, 40, 3, 4
STARTS = torch.tensor([0, 4, 7, T])
GROUPS = {"advantages": None, "group_ids": torch.zeros(B).long()}
PACK = r"r1kernels\.pack\(hidden_states, input_ids, completion_mask\)"


def head(**change: Any) -> dict[str, Any]:
    given = {"hidden": torch.randn(T, H), "weight": torch.randn(V, H), "target": torch.arange(T)}
    return {**given, **change}


def fused(**change: Any) -> Any:
    given = head(cu_seqlens=STARTS, advantages=torch.randn(B))
    return r1kernels.fused_linear_grpo_loss(**{**given, **change})


def score(**change: Any) -> Any:
    return r1kernels.linear_logprob(**head(**change))


def policy(**change: Any) -> Any:
    given = {"logprob": -torch.rand(T), "cu_seqlens": STARTS, "advantages": torch.randn(B)}
    return r1kernels.policy_loss(**{**given, **change})


def entropy(**change: Any) -> Any:
    return r1kernels.linear_cross_entropy(**head(**change))


def experts(routing: Any, experts: int = E) -> Tensor:
    return r1kernels.moe_experts(
        torch.randn(T, H), torch.randn(experts, 8, H), torch.randn(experts, H, 4), routing
    )


def route(**options: Any) -> r1kernels.Routing:
    return r1kernels.moe_route(torch.randn(T, E), 2, **options)


def use(backend: str, *ops: Any) -> None:
    with r1kernels.using(backend, *ops):
        pass


LABELS = torch.arange(T).masked_fill(torch.arange(T) < 3, -100)
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    # Padded batches.
    "padded hidden": (lambda: score(hidden=torch.randn(B, 4, H)),
        rf"linear_logprob: hidden: expected shape \[T, H\], got \[3, 4, 16\] \(of .*{PACK}"),
    "padded target": (lambda: fused(target=torch.zeros(B, 4).long()),
        rf"fused_linear_grpo_loss: target: expected shape \[T\], got \[3, 4\] \(of .*{PACK}"),
    "padded hidden of a cross-entropy": (lambda: entropy(hidden=torch.randn(B, 4, H)),
        rf"linear_cross_entropy: hidden: .*{PACK}"),
    "padded logits": (lambda: r1kernels.logprob(torch.randn(B, 4, V), torch.zeros(B, 4).long()),
        rf"logprob: logits: .*{PACK}"),
    "padded log-probabilities": (lambda: policy(logprob=torch.randn(B, 4)),
        r"policy_loss: logprob: .*values\[completion_mask\.bool\(\)\] packs"),
    "padded old ones": (lambda: fused(old_logprob=torch.randn(B, 4)),
        r"fused_linear_grpo_loss: old_logprob: .*values\[completion_mask\.bool\(\)\] packs"),
    "a batch of tokens for experts": (lambda: r1kernels.moe_route(torch.randn(B, 4, E), 2),
        r"moe_route: logits: expected shape \[T, E\], got \[3, 4, 4\] \(\.flatten\(0, 1\)"),
    # cu_seqlens.
    "lengths": (lambda: fused(cu_seqlens=torch.tensor([4, 3, 5])),
        r"fused_linear_grpo_loss: cu_seqlens: .*look like lengths: .* \[0, \*lengths\.cumsum"),
    "lengths that begin with 0": (lambda: policy(cu_seqlens=torch.tensor([0, 4, 8])),
        r"policy_loss: cu_seqlens: .*got 0 … 8 \(these look like lengths"),
    "ends": (lambda: policy(cu_seqlens=torch.tensor([4, 7, T])),
        r"policy_loss: cu_seqlens: .*these look like ends: cu_seqlens is \[0, \*ends\]"),
    "offsets of other rows": (lambda: fused(cu_seqlens=torch.tensor([0, 4, 7, 11])),
        r"cu_seqlens: .*end at T = 12, got 0 … 11 \(T is that of hidden\)"),
    "a list of offsets": (lambda: fused(cu_seqlens=[0, 4, 7, T]),
        r"cu_seqlens: expected a tensor of shape \[B\+1\], got list .*torch\.as_tensor makes one"),
    "rows of each expert as offsets": (
        lambda: r1kernels.grouped_mm(torch.randn(T, H), torch.randn(3, 9, H), STARTS[1:].int()),
        r"grouped_mm: offsets: expected E\+1 = 4 .*of lengths, E\+1 offsets are \[0, \*lengths"),
    # Advantages, rewards and groups.
    "advantages with a dimension too many": (lambda: fused(advantages=torch.randn(T, 1)),
        r"advantages: expected shape \[B\] or \[T\], got \[12, 1\] \(\.squeeze\(-1\)"),
    "advantages of sequences with one": (lambda: policy(advantages=torch.randn(B, 1)),
        r"advantages: expected shape \[B\] or \[T\], got \[3, 1\] \(\.squeeze\(-1\)"),
    "padded advantages": (lambda: fused(advantages=torch.randn(B, 5)),
        r"advantages: .*got \[3, 5\] \(.*advantages\[completion_mask\.bool\(\)\]"),
    "advantages of neither": (lambda: fused(advantages=torch.randn(5)),
        r"advantages: expected B = 3 elements, one a sequence .* or T = 12, one a token, got \[5"),
    "advantages in double": (lambda: fused(advantages=torch.randn(B).double()),
        r"fused_linear_grpo_loss: advantages: expected dtype float32, got float64 \(\.to\("),
    "an array": (lambda: fused(advantages=np.ones(3)),
        r"advantages: expected a tensor .*, got ndarray \(torch\.as_tensor makes one"),
    "rewards by prompt": (lambda: fused(**{**GROUPS, "rewards": torch.rand(2, 4)}),
        r"rewards: expected shape \[B\], got \[2, 4\] .*arange\(2\)\.repeat_interleave\(4\)"),
    "whole rewards": (lambda: fused(**{**GROUPS, "rewards": torch.tensor([1, 0, 0])}),
        r"rewards: expected dtype float32, got int64 \(\.to\(torch\.float32\)"),
    "groups of floats": (
        lambda: fused(advantages=None, rewards=torch.rand(B), group_ids=torch.zeros(B)),
        r"group_ids: expected dtype int64 or int32, got float32 \(\.long\(\)"),
    "one of several rewards": (lambda: r1kernels.gdpo_advantage(torch.rand(B), STARTS[1:]),
        r"gdpo_advantage: rewards: expected shape \[B, R\], got \[3\]"),
    # Tokens and masks.
    "labels": (lambda: fused(target=LABELS),
        r"fused_linear_grpo_loss: target\[0\]: .*got -100 \(a label .*mask=target != -100"),
    "labels without a mask": (lambda: score(target=LABELS), r"logprob: target\[0\]: .*label"),
    "ids of floats": (lambda: score(target=torch.zeros(T)),
        r"target: expected dtype int64 or int32, got float32 \(\.long\(\)"),
    "a mask of floats": (lambda: fused(mask=torch.ones(T)),
        r"mask: expected dtype bool, got float32 \(\.bool\(\)"),
    "a mask of ints": (lambda: policy(mask=torch.ones(T).long()),
        r"mask: expected dtype bool, got int64 \(\.bool\(\)"),
    # The head.
    "a transposed head": (lambda: fused(weight=torch.randn(H, V)),
        r"weight: expected H = 16 in shape \[V, H\], got \[16, 40\] .*transposed\? \.mT"),
    "Liger's order": (
        lambda: entropy(hidden=torch.randn(V, H), weight=torch.randn(T, H)),
        r"target: expected T = 40 .*; weight has as many rows: are the two exchanged\?",
    ),
    "a module": (lambda: score(weight=nn.Linear(H, V)), r"got Linear \(\.weight is one\)"),
    "two dtypes": (lambda: score(hidden=torch.randn(T, H).bfloat16()),
        r"weight: expected dtype bfloat16, got float32 \(.*; hidden has that dtype\)"),
    "two devices": (lambda: score(target=torch.zeros(T, device="meta").long()),
        r"target: expected a tensor on cpu, got one on meta \(hidden is on cpu\)"),
    "a nested tensor": (
        lambda: score(hidden=torch.nested.nested_tensor([torch.randn(3, H)], layout=torch.jagged)),
        r"hidden: expected a dense tensor, got layout torch\.jagged \(\.values\(\)"),
    "a temperature in a tuple": (lambda: score(temperature=(0.7,)),
        r"temperature: expected a number, got tuple \(0\.7,\)"),
    "a temperature of no dimension": (lambda: score(temperature=torch.tensor(0.7)),
        r"temperature: expected shape \[T\], got \[\] \(\.expand\(12\)"),
    "a group's name": (lambda: score(tp_group="tp"), "tp_group: expected a ProcessGroup, got 'tp'"),
    # Options.
    "capitals": (lambda: fused(loss_type="GRPO"), r"loss_type: .*got 'GRPO' \(did you mean 'grpo'"),
    "dashes": (lambda: fused(loss_type="dr-grpo"), "did you mean 'dr_grpo'"),
    "half a word": (lambda: fused(importance_sampling_level="seq"), "did you mean 'sequence'"),
    "an average": (lambda: entropy(reduction="average"), "reduction: .*did you mean 'mean'"),
    "two bounds": (lambda: fused(epsilon=(0.2, 0.28)),
        r"epsilon: expected a number, got tuple \(0\.2, 0\.28\) \(.*epsilon_high the one above"),
    "bounds by name": (lambda: policy(epsilon={"low": 0.2}), r"epsilon: expected .*, got dict"),
    "a word for a number": (lambda: fused(beta="0.1"), r"beta: expected a number, got '0\.1'"),
    "no beta": (lambda: fused(beta=None), "beta: expected a number, got None"),
    "verl's name": (lambda: fused(clip_ratio_high=0.2),
        r"fused_linear_grpo_loss: unexpected keyword argument 'clip_ratio_high' .*'epsilon_high'"),
    "TRL's name": (lambda: policy(old_per_token_logps=None),
        r"policy_loss: unexpected keyword argument 'old_per_token_logps' .*'old_logprob'"),
    "a slip": (lambda: fused(epsilom=0.2), "unexpected keyword argument 'epsilom' .*'epsilon'"),
    "no limit, as vLLM says it": (lambda: r1kernels.candidates(torch.randn(T, V), top_k=-1),
        r"candidates: top_k: .*got -1 \(None: no limit\)"),
    # Routings, FP8 tensors, backends.
    "a pair for a routing": (lambda: experts(route()[:2]),
        r"moe_experts: routing: expected a Routing, got tuple .*Routing\.of\(weights, ids, num"),
    "a routing without its sort": (lambda: experts(route(align=None)), r"got one without \(align="),
    "a routing of other experts": (lambda: experts(route(), 5), "E = 5 experts .*got one of 4"),
    "a side for a block": (lambda: r1kernels.fp8_quantize(torch.randn(T, H), block=128),
        r"fp8_quantize: block: expected one of \(1, 128\), .*; got 128 \(rows and columns"),
    "a weight in blocks of rows": (
        lambda: r1kernels.fp8_linear(
            torch.randn(T, H), torch.randn(V, H), r1kernels.fp8_quantize(torch.randn(V, H))
        ),
        r"quantized\.scale: .*got \[40, 1\] \(that is by rows: block=\(128, 128\)",
    ),
    "a weight for its codes": (lambda: r1kernels.fp8_linear(*[torch.randn(T, H)] * 3),
        r"fp8_linear: quantized: expected an FP8Tensor, got a tensor .*fp8_quantize makes one"),
    "half a backend": (lambda: use("cp"), r"using: backend: .*got 'cp' \(did you mean 'cpp'"),
    "a device for a backend": (lambda: use("gpu"), r"using: backend: .*did you mean 'cuda'"),
    "a function to pin": (lambda: use("cpp", r1kernels.logprob), "using: .*the name of an op"),
}  # fmt: skip


@pytest.mark.parametrize("habit", CASES)
def test_what_is_said(habit: str) -> None:
    call, message = CASES[habit]
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert re.search(message, str(error.value)), str(error.value)


def test_groups_of_one_are_warned_of() -> None:
    ids = torch.arange(B)
    with pytest.warns(UserWarning, match="group_ids: every completion is in a group of its own"):
        fused(advantages=None, rewards=torch.rand(B), group_ids=ids)
    with pytest.warns(UserWarning, match="policy_loss: group_ids: every completion"):
        policy(advantages=None, rewards=torch.rand(B), group_ids=ids)


def test_names_from_elsewhere_are_names_here() -> None:
    backends = ("torch", "cpp", "cuda")
    values = ("mean", "grpo", "k1", "k2", "k3+", "low_var", *backends)
    assert set(ELSEWHERE.values()) <= {*KEYWORDS, "logprob", *values}
    assert not set(ELSEWHERE) & set(KEYWORDS)


def test_nothing_is_near_to_nonsense() -> None:
    assert nearest("qwertz", KEYWORDS) == ""
    assert nearest(3, KEYWORDS) == ""
