"""Experts on two processes against all of them on one, with the tokens of both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import r1kernels
from r1kernels.core import native

RANKS, EXPERTS, TOP_K, WIDTH, INNER = 2, 6, 3, 40, 24
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = [
    *((name, "torch") for name in DTYPES),
    *(
        (name, "compiled")
        for name in ("fp32", "bf16")
        if native.absent("cpp", "moe_experts") is None
    ),
]

# Tokens of each rank, and what each case does to their choices.
CASES: dict[str, dict[str, Any]] = {
    "alike": {"tokens": (16, 16)},
    "uneven": {"tokens": (23, 5)},
    "a rank without tokens": {"tokens": (0, 17)},
    "no tokens at all": {"tokens": (0, 0)},
    "an expert nobody chose": {"tokens": (9, 14), "only": (0, 1, 3, 4, 5)},
    "nothing for a rank": {"tokens": (9, 14), "only": (3, 4, 5)},
    "skipped slots": {"tokens": (12, 20), "skip": True},
    "frozen experts": {"tokens": (8, 9), "grad": ("x", "weights")},
    "forward only": {"tokens": (8, 9), "grad": ()},
    "biases, transposed, of GPT-OSS": {"tokens": (13, 6), "gpt_oss": True},
}


def gpt_oss(h: Tensor) -> Tensor:
    gate, up = h[..., ::2].clamp(max=7), h[..., 1::2].clamp(-7, 7)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def problem(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    tokens = sum(case["tokens"])

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64).to(dtype)

    chosen = torch.tensor(case.get("only", range(EXPERTS)))
    ids = chosen[torch.rand(tokens, len(chosen), generator=rng).argsort(1)[:, :TOP_K]]
    if "skip" in case:
        ids[ids == 2] = EXPERTS
        ids[5] = EXPERTS + 1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {
        "x": normal(tokens, WIDTH),
        "gate_up": normal(EXPERTS, 2 * INNER, WIDTH) / 6,
        "down": normal(EXPERTS, WIDTH, INNER) / 5,
        "weights": torch.rand(tokens, TOP_K, generator=rng, dtype=torch.float64).to(wide),
    }
    if "gpt_oss" in case:
        leaves["gate_up"] = leaves["gate_up"].mT.contiguous()
        leaves["down"] = leaves["down"].mT.contiguous()
        leaves["gate_up_bias"] = normal(EXPERTS, 2 * INNER)
        leaves["down_bias"] = normal(EXPERTS, WIDTH)
    return {**leaves, "ids": ids, "upstream": normal(tokens, WIDTH)}


def run(name: str, kind: tuple[str, str], rank: int | None = None) -> dict[str, Tensor]:
    """y and the gradients of a rank, or of the whole without one."""
    dtype, backend = kind
    with r1kernels.using("torch") if backend == "torch" else nullcontext():
        return _run(CASES[name], DTYPES[dtype], rank)


def _run(case: dict[str, Any], dtype: torch.dtype, rank: int | None) -> dict[str, Tensor]:
    given = problem(case, dtype)
    mesh: dict[str, Any] = {}
    if rank is not None:
        mesh = {"group": dist.init_device_mesh("cpu", (RANKS,))}
        for key, value in given.items():
            of_tokens = key in ("x", "weights", "ids", "upstream")
            parts = value.split(case["tokens"]) if of_tokens else value.chunk(RANKS)
            given[key] = parts[rank].clone()
    ids, upstream = given.pop("ids"), given.pop("upstream")
    wanted = case.get("grad", tuple(given))
    for key in wanted:
        given[key].requires_grad_()
    routing = r1kernels.Routing.of(given["weights"], ids, EXPERTS)
    options: dict[str, Any] = {}
    if "gpt_oss" in case:
        options = {key: given[key] for key in ("gate_up_bias", "down_bias")}
        options |= {"activation": gpt_oss, "transposed": True}
    experts = r1kernels.moe_experts if rank is None else r1kernels.moe_experts_parallel
    y = experts(given["x"], given["gate_up"], given["down"], routing, **options, **mesh)
    found = {"y": y.detach()}
    if wanted:
        leaves = [given[key] for key in wanted]
        gradients = torch.autograd.grad(y, leaves, upstream)
        found |= {f"d{key}": g for key, g in zip(wanted, gradients, strict=True)}
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        results = {(name, kind): run(name, kind, rank) for name in CASES for kind in KINDS}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_bits_of_one(
    ranks: list[dict[Any, Any]], name: str, kind: tuple[str, str]
) -> None:
    torch.set_num_threads(1)
    for key, whole in run(name, kind).items():
        ours = torch.cat([results[name, kind][key] for results in ranks])
        assert torch.equal(ours, whole), f"{key} differs by {(ours - whole).abs().max()}"


def test_an_expert_nobody_chose_has_a_gradient_of_zero(ranks: list[dict[Any, Any]]) -> None:
    for kind in KINDS:
        for key in ("dgate_up", "ddown"):
            assert not ranks[0]["an expert nobody chose", kind][key][2].any()
            assert not ranks[0]["nothing for a rank", kind][key].any()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 7}, "routing: expected one of E = 6 experts with its sort, got one of 7"),
        ({"align": 16}, r"routing: expected one without padding \(align = 1\), got P = 176 rows"),
        ({"x": torch.zeros(31, WIDTH)}, r"routing.weights: expected T = 31 .*, got \[32, 3\]"),
        ({"x": torch.zeros(32, WIDTH).half()}, "gate_up: expected dtype float16, got float32"),
        ({"down": torch.zeros(5, WIDTH, INNER)}, r"down: expected E/W = 6 .*, got \[5, 40, 24\]"),
        ({"down": torch.zeros(6, WIDTH, 25)}, "gate_up: expected 2·I = 50 rows an expert, got 48"),
    ],
)
def test_bad_input_is_named(alone: Any, change: dict[str, Any], message: str) -> None:
    given = {**problem(CASES["alike"], torch.float32), "num_experts": EXPERTS, "align": 1, **change}
    routing = r1kernels.Routing.of(
        given["weights"], given["ids"], given["num_experts"], align=given["align"]
    )
    with pytest.raises((ValueError, TypeError), match=f"moe_experts_parallel: {message}"):
        r1kernels.moe_experts_parallel(
            given["x"], given["gate_up"], given["down"], routing, group=alone
        )
