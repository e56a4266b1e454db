"""A wrong argument is named, whatever is wrong about it, by the function that was called.

Every argument of every public function is exchanged for what people bring along from elsewhere:
arrays, lists, masks of other dtypes, padded and transposed tensors, names of other libraries.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import FP8Tensor, Routing

T, H, V, B, E, INNER = 12, 16, 40, 3, 4, 8


def squares(weight: Tensor) -> FP8Tensor:
    return r1kernels.fp8_quantize(weight, block=(128, 128))


def calls() -> dict[str, dict[str, Any]]:
    """Arguments that are right; what follows a space in a name tells two sets of them apart."""
    target = torch.randint(V, (T,))
    starts = torch.tensor([0, 4, 7, T], dtype=torch.int32)
    mask = torch.ones(T, dtype=torch.bool)
    mask[2] = False
    logprob = -torch.rand(T)
    kept = r1kernels.candidates(torch.zeros(T, V), target=target)
    head = {
        "hidden": torch.randn(T, H), "weight": torch.randn(V, H), "target": target,
        "bias": torch.randn(V), "temperature": 0.7, "logit_scale": 1.0, "softcap": 5.0,
    }  # fmt: skip
    loss = {
        "cu_seqlens": starts, "mask": mask, "loss_type": "grpo",
        "importance_sampling_level": "token", "beta": 0.1, "kl_estimator": "k3",
        "use_bias_correction_kl": False, "entropy_coef": 0.1, "old_logprob": logprob.clone(),
        "ref_logprob": logprob.clone(), "sampling_logprob": logprob.clone(),
        "rollout_correction": "token_mask", "rollout_clip_min": 0.0, "rollout_clip_max": 3.0,
        "off_policy_mask_threshold": 0.1, "num_active_tokens": 11, "num_sequences": 3,
        "max_completion_length": 9, "epsilon": 0.2, "epsilon_high": 0.28, "delta": 2.0,
        "clip_ratio_c": 3.0,
    }  # fmt: skip
    groups = {"rewards": torch.rand(B), "group_ids": torch.tensor([0, 0, 1])}
    advantages = {"advantages": torch.randn(B)}
    routing = r1kernels.moe_route(torch.randn(T, E), 2)
    x, gate_up, down = torch.randn(T, H), torch.randn(E, 2 * INNER, H), torch.randn(E, H, INNER)
    offsets = torch.tensor([0, 3, 3, 8, T], dtype=torch.int32)
    pair = r1kernels.fp8_quantize(torch.randn(256, H), both=True)
    rows = r1kernels.fp8_quantize(torch.randn(T, H))
    experts = {"x": x, "gate_up": gate_up, "down": down, "routing": routing}
    return {
        "linear_logprob": {
            **head, "entropy": True, "tp_group": None, "vocab_start": 0, "vocab_size": V,
        },
        "linear_logprob candidates": {
            **head, "entropy": True, "candidate_ids": kept.ids, "candidate_offsets": kept.offsets,
        },
        "logprob": {
            "logits": torch.randn(T, V), "target": target, "temperature": 0.7, "logit_scale": 1.0,
            "softcap": 5.0, "entropy": True, "inplace_backward": False,
        },
        "linear_reverse_kl": {
            **{name: head[name] for name in head if name != "target"},
            "teacher_hidden": torch.randn(T, INNER), "teacher_weight": torch.randn(V, INNER),
            "teacher_bias": torch.randn(V), "teacher_logit_scale": 0.5, "teacher_softcap": 3.0,
        },
        "linear_reverse_kl padded": {
            "hidden": head["hidden"], "weight": head["weight"],
            "teacher_hidden": torch.randn(T, INNER), "teacher_weight": torch.randn(V, INNER),
            "teacher_bias": torch.randn(V), "vocab_size": V - 1,
        },
        "linear_cross_entropy": {
            **{name: head[name] for name in head if name != "temperature"},
            "ignore_index": -100, "reduction": "mean", "vocab_size": V,
        },
        "group_advantage": {**groups, "scale": "group", "baseline": "mean", "eps": 1e-4},
        "group_advantage opo": {**groups, "baseline": "opo", "lengths": torch.tensor([3, 4, 5])},
        "gdpo_advantage": {
            "rewards": torch.rand(B, 2), "group_ids": groups["group_ids"],
            "reward_weights": [1.0, 2.0], "eps": 1e-4,
        },
        "policy_loss": {**loss, **advantages, "logprob": logprob, "entropy": torch.rand(T)},
        "policy_loss rewards": {
            **loss, **groups, "scale_rewards": "group", "baseline": "mean",
            "logprob": logprob, "entropy": torch.rand(T),
        },
        "fused_linear_grpo_loss": {**head, **loss, **advantages, "entropy": True},
        "fused_linear_grpo_loss rewards": {
            **head, **loss, **groups, "scale_rewards": "group", "baseline": "opo",
        },
        "fused_linear_loss": {
            **head, "loss_fn": lambda *found: found[0].sum(), "entropy": True, "mask": mask,
        },
        "candidates": {
            "logits": torch.randn(T, V), "temperature": 0.7, "top_k": 3, "top_p": 0.9,
            "target": target,
        },
        "sample_logprob": {
            "logits": torch.randn(T, V), "uniform": torch.rand(T).double(), "temperature": 0.7,
        },
        "linear_sample_logprob": {
            **{name: head[name] for name in ("hidden", "weight", "bias")},
            "uniform": torch.rand(T).double(), "temperature": 0.7, "logit_scale": 1.0,
            "softcap": 5.0,
        },
        "filter_logits": {
            "logits": torch.randn(T, V), "temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1,
        },
        "pack": {
            "hidden_states": torch.randn(B, 7, H), "input_ids": torch.randint(V, (B, 7)),
            "completion_mask": torch.tensor([[0, 1, 1, 0, 0, 1, 0]] * B),
        },
        "moe_route": {
            "logits": torch.randn(T, E), "top_k": 2, "score": "sigmoid", "order": "score_first",
            "bias": torch.zeros(E), "num_groups": 2, "top_k_groups": 1, "normalize": True,
            "scale": 2.5, "replay_ids": routing.ids, "num_valid": torch.tensor(5), "align": 1,
        },
        "moe_sort": {"ids": routing.ids, "num_experts": E, "align": 1},
        "moe_permute": {"x": x, "gather": routing.gather, "inverse": routing.inverse},
        "moe_combine": {
            "rows": torch.randn(2 * T, H), "weights": routing.weights, "gather": routing.gather,
            "inverse": routing.inverse,
        },
        "moe_balance_loss": {
            "logits": torch.randn(T, E), "top_k": 2, "score": "sigmoid", "cu_seqlens": starts,
            "mask": mask, "coef": 1e-4,
        },
        "update_expert_bias": {
            "bias": torch.zeros(E), "counts": torch.ones(E).int(), "rate": 1e-3,
        },
        "grouped_mm": {
            "x": x, "weight": torch.randn(E, 9, H), "offsets": offsets, "transposed": False,
        },
        "moe_experts": experts,
        "moe_experts biases": {
            **experts, "activation": lambda h: h.chunk(2, -1)[0], "transposed": False,
            "gate_up_bias": torch.randn(E, 2 * INNER), "down_bias": torch.randn(E, H),
        },
        "rms_norm": {
            "x": x, "weight": torch.randn(H), "residual": torch.randn(T, H), "eps": 1e-6,
            "offset": 1.0, "round_before_weight": False,
        },
        "rope": {
            "q": torch.randn(B, 4, T, H), "k": torch.randn(B, 2, T, H),
            "cos": torch.randn(B, T, H), "sin": torch.randn(B, T, H), "interleaved": False,
        },
        "packed_attention": {
            "query": torch.randn(T, 4, H), "key": torch.randn(T, 2, H),
            "value": torch.randn(T, 2, INNER), "cu_seqlens": starts,
            "prefix": torch.tensor([-1, 0, 0], dtype=torch.int32), "scale": 0.3,
        },
        "swiglu": {"gate": x, "up": torch.randn(T, H)},
        "geglu": {"gate": x, "up": torch.randn(T, H), "approximate": "tanh"},
        "fp8_quantize": {
            "x": torch.randn(T, H), "block": (1, 128), "scale_format": "float", "both": True,
            "gather": routing.gather, "top_k": 2,
        },
        "fp8_dequantize": {"data": rows.data, "scale": rows.scale, "dtype": torch.bfloat16},
        "fp8_gemm": {
            "a": rows, "b": squares(torch.randn(V, H)), "out_dtype": torch.bfloat16,
            "bias": torch.randn(V).bfloat16(), "transposed": False,
        },
        "fp8_gemm accumulate": {
            "a": rows, "b": squares(torch.randn(V, H)), "accumulate": torch.zeros(T, V),
        },
        "fp8_grouped_gemm": {
            "a": rows, "b": squares(gate_up), "offsets": offsets, "counts": offsets.diff(),
            "out_dtype": torch.bfloat16, "transposed": False,
        },
        "fp8_grouped_wgrad": {
            "left": pair.transposed, "right": pair.transposed,
            "offsets": torch.tensor([0, 128, 256], dtype=torch.int32),
            "accumulate": torch.zeros(2, H, H),
        },
        "fp8_linear": {
            "x": x, "weight": torch.randn(V, H), "quantized": squares(torch.randn(V, H)),
            "bias": torch.randn(V), "scale_format": "float",
        },
        "fp8_experts": {
            **experts, "gate_up_quantized": squares(gate_up), "down_quantized": squares(down),
            "scale_format": "float",
        },
        "fp8_swiglu": {"h": torch.randn(T, 2 * INNER), "scale_format": "float"},
        "fp8_swiglu_backward": {
            "h": torch.randn(T, 2 * INNER), "da": torch.randn(T, INNER), "weights": torch.rand(T),
            "scale_format": "float", "frozen": False,
        },
        "fp8_combine": {
            "rows": r1kernels.fp8_quantize(torch.randn(2 * T, H)), "weights": routing.weights,
            "inverse": routing.inverse, "dtype": torch.bfloat16,
        },
    }  # fmt: skip


# Functions that take no tensors, or a process group, which other tests bring.
ELSEWHERE = {"checked", "explain", "kept_memory", "using", "moe_experts_parallel"}


# Where a change of size makes another argument wrong, and nobody knows which of the two is.
AMBIGUOUS = {
    ("linear_logprob candidates", "candidate_ids"), ("fp8_dequantize", "data"),
    ("fp8_quantize", "x"), ("fp8_grouped_wgrad", "offsets"), ("moe_permute", "gather"),
}  # fmt: skip
SIZES = {
    "no rows", "one row more", "the transpose", "one dimension more at the end",
    "one dimension more at the start",
}  # fmt: skip


def instead_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What may be given for a value, and what it is."""
    yield from {
        "None": None, "a word": "abc", "an object": object(), "a pair": (0.2, 0.3),
        "a dict": {"low": 1}, "True": True, "nan": float("nan"), "-1": -1, "2.0": 2.0, "0": 0,
        "a 0-d tensor": torch.tensor(1.0), "a tensor of 4 dimensions": torch.randn(2, 3, 4, 5),
    }.items()  # fmt: skip
    if isinstance(value, Tensor):
        yield from tensors_instead_of(value)
    elif isinstance(value, (FP8Tensor, Routing)):
        yield "a plain tuple", tuple(value)
        yield "two tensors", tuple(value)[:2]
        yield "its first tensor", value[0]
        yield "one of None", type(value)(*[None] * len(value))
        yield "one in another order", type(value)(value[1], value[0], *value[2:])
        if isinstance(value, Routing):
            nothing = dict.fromkeys(("counts", "offsets", "gather", "inverse"))
            yield "one without its sort", value._replace(**nothing)
    elif isinstance(value, str):
        yield "capitals", value.upper()
    elif isinstance(value, tuple):
        yield "128", 128


def tensors_instead_of(value: Tensor) -> Iterator[tuple[str, Any]]:
    plain = value.float()
    yield "a list", plain.tolist()
    yield "an array", plain.numpy()
    yield "one dimension more at the end", value.unsqueeze(-1)
    yield "one dimension more at the start", value.unsqueeze(0)
    if value.dim() > 1:
        yield "the transpose", value.mT
    if value.dim():
        yield "one row more", torch.cat([plain, plain[:1]]).to(value.dtype)
        yield "no rows", value[:0]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32,
                  torch.int16, torch.uint8, torch.bool, torch.complex64):  # fmt: skip
        yield str(dtype), plain.to(dtype)
    yield "meta", value.to("meta")
    yield "sparse", plain.to_sparse()
    if value.dtype in (torch.int32, torch.int64):
        yield "negative", value - 1000
        yield "large", value + 1000
        yield "backwards", value.flip(0) if value.dim() else value


def blamed(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What the call says, or None where these arguments are taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**arguments)
        except (ValueError, TypeError) as error:
            return f"{type(error).__name__} {error}"
        except Exception as error:  # deep inside
            return f"{type(error).__name__}, which is no error of an argument: {error}"
    return None


def test_every_public_function_is_here() -> None:
    functions = {name for name in r1kernels.__all__ if name.islower()}
    assert {call.split()[0] for call in calls()} == functions - ELSEWHERE


@pytest.mark.parametrize("call", calls())
def test_the_wrong_argument_is_named(call: str) -> None:
    name = call.split()[0]
    function, right = getattr(r1kernels, name), calls()[call]
    assert blamed(function, right) is None
    wrong = []
    for argument, value in right.items():
        for what, other in instead_of(value):
            # Some write into an argument.
            given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in right.items()}
            said = blamed(function, {**given, argument: other})
            known = rf"\b{argument}\b"
            if (call, argument) in AMBIGUOUS and what in SIZES:
                known = ""
            if said is not None and not re.match(rf"(Value|Type)Error {name}: .*{known}", said):
                wrong.append(f"{argument}, {what}: {said[:200]}")
    assert not wrong, "\n".join(wrong)
