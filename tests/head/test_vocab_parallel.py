"""A vocabulary in two shards, on two processes, against the whole vocabulary on one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import r1kernels
from r1kernels.head.linear_logprob import head_logprob
from r1kernels.head.vocab_parallel import combine

ROWS, WIDTH, COLUMNS, RANKS = 37, 24, 151, 2
CUT = 100  # columns of the first shard: they need not be alike
IGNORED = -100

# What each case does besides the plain head; "grad" says which of hidden and the head learn.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap and temperature": {"softcap": 2.0, "logit_scale": 1.5, "temperature": True},
    "entropy": {"entropy": True},
    "everything": {
        "bias": True, "softcap": 2.0, "logit_scale": 0.5, "temperature": True, "entropy": True,
        "keep": True,
    },
    "frozen head": {"grad": "hidden", "keep": True},
    "frozen head softcap": {"grad": "hidden", "softcap": 2.0, "temperature": True, "bias": True},
    "forward only": {"grad": "", "entropy": True},
    "head alone": {"grad": "head", "bias": True},
    "padding": {"vocab_size": 140, "bias": True, "entropy": True},
    "padding frozen head": {"vocab_size": 140, "grad": "hidden"},
    "nothing but padding in a shard": {"vocab_size": 90, "bias": True, "entropy": True},
    "nothing but padding frozen head": {"vocab_size": 90, "grad": "hidden"},
}  # fmt: skip
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}


def problem(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(7)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    size = case.get("vocab_size", COLUMNS)
    target = torch.randint(size, (ROWS,), generator=rng)
    target[::5] = IGNORED
    return {
        "hidden": normal(ROWS, WIDTH).to(dtype),
        "weight": (normal(COLUMNS, WIDTH) / 3).to(dtype),
        "bias": normal(COLUMNS).to(dtype) if "bias" in case else None,
        "target": target,
        "temperature": (normal(ROWS).abs() + 0.5).to(wide) if "temperature" in case else 1.0,
        "upstream": normal(ROWS).to(wide),
        "keep": torch.arange(ROWS) % 4 != 1 if "keep" in case else None,
    }


def run(case: dict[str, Any], dtype: torch.dtype, shard: dict[str, Any]) -> dict[str, Tensor]:
    """logprob, entropy, loss and gradients of a rank, or of the whole without a ``shard``."""
    x = problem(case, dtype)
    start = shard.get("vocab_start", 0)
    rows = slice(start, start + shard.pop("columns", COLUMNS))
    grad = case.get("grad", "hidden head")
    hidden = x["hidden"].requires_grad_("hidden" in grad)
    weight = x["weight"][rows].clone().requires_grad_("head" in grad)
    bias = None if x["bias"] is None else x["bias"][rows].clone().requires_grad_("head" in grad)
    logprob, entropy, regime = head_logprob(
        "test", hidden, weight, x["target"], bias, x["temperature"], case.get("logit_scale", 1.0),
        case.get("softcap"), case.get("entropy", False), ignore_index=IGNORED, keep=x["keep"],
        vocab_size=case.get("vocab_size"), **shard,
    )  # fmt: skip
    upstream = x["upstream"] if x["keep"] is None else x["upstream"].where(x["keep"], 0)
    loss = (upstream * logprob).sum()
    if entropy is not None:
        loss = loss + (upstream * entropy).sum()
    out = {"logprob": logprob, "loss": loss}
    if entropy is not None:
        out["entropy"] = entropy
    leaves = {"dhidden": hidden, "dweight": weight, "dbias": bias}
    leaves = {k: v for k, v in leaves.items() if v is not None and v.requires_grad}
    if leaves:
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        out |= dict(zip(leaves, gradients, strict=True))
    assert (regime == "frozen_head") == (grad == "hidden")
    return {k: v.detach() for k, v in out.items()}


@contextmanager
def rank(index: int, folder: str) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=RANKS
    )
    try:
        yield {
            "tp_group": dist.group.WORLD,
            "vocab_start": index * CUT,
            "columns": COLUMNS - CUT if index else CUT,
        }
    finally:
        dist.destroy_process_group()


def work(index: int, folder: str) -> None:
    results: dict[tuple[str, str], dict[str, Tensor]] = {}
    with rank(index, folder) as shard:
        for name, case in CASES.items():
            for kind, dtype in DTYPES.items():
                results[name, kind] = run(case, dtype, dict(shard))
        messages = {"too large": wrong_target(shard, COLUMNS), "negative": wrong_target(shard, -3)}
        losses = {name: loss(**shard) for name, loss in LOSSES.items()}
    torch.save((results, messages, losses), Path(folder) / f"{index}.pt")


def wrong_target(shard: dict[str, Any], target: int) -> str:
    x = problem({}, torch.float32)
    shard = dict(shard)
    rows = slice(shard["vocab_start"], shard["vocab_start"] + shard.pop("columns"))
    ids = torch.full((ROWS,), 4)
    ids[2] = target
    try:
        r1kernels.linear_logprob(x["hidden"], x["weight"][rows], ids, **shard)
    except ValueError as error:
        return str(error)
    return "no error"


def cross_entropy(columns: int = COLUMNS, **shard: Any) -> dict[str, Tensor]:
    x = problem({}, torch.float32)
    start = shard.get("vocab_start", 0)
    weight = x["weight"][start : start + columns].clone().requires_grad_()
    loss = r1kernels.linear_cross_entropy(x["hidden"], weight, x["target"], **shard)
    (gradient,) = torch.autograd.grad(loss, weight)
    return {"loss": loss.detach(), "dweight": gradient}


def grpo(columns: int = COLUMNS, **shard: Any) -> dict[str, Tensor]:
    x = problem({}, torch.float32)
    start = shard.get("vocab_start", 0)
    weight = x["weight"][start : start + columns].clone().requires_grad_()
    loss = r1kernels.fused_linear_grpo_loss(
        x["hidden"],
        weight,
        x["target"].clamp(min=0),
        advantages=torch.tensor([1.0, 0.0, -0.5]),
        cu_seqlens=torch.tensor([0, 10, 20, ROWS]),
        mask=x["target"] != IGNORED,
        **shard,
    ).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    return {"loss": loss.detach(), "dweight": gradient}


LOSSES = {"cross_entropy": cross_entropy, "grpo": grpo}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict, dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{index}.pt") for index in range(RANKS)]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_two_shards_equal_the_whole_vocabulary(ranks: list, name: str, kind: str) -> None:
    expected = run(CASES[name], DTYPES[kind], {})
    got = [results[name, kind] for results, _, _ in ranks]
    for key, whole in expected.items():
        if key in ("dweight", "dbias"):
            ours = torch.cat([shard[key] for shard in got])
        else:
            ours = got[0][key]
            assert torch.equal(got[1][key], ours), f"{key} differs between the ranks"
        scale = max(float(whole.abs().max()), 1.0)
        torch.testing.assert_close(ours, whole, rtol=0, atol=TOLERANCE[kind] * scale)


def test_verl_2656_padded_columns_add_no_exp_0(ranks: list) -> None:
    """verl #2656: out-of-range columns of the last shard entered the log-sum-exp as exp(0)."""
    x = problem(CASES["padding"], torch.float64)
    logits = (x["hidden"] @ x["weight"].T + x["bias"])[:, :140]
    valid = x["target"] != IGNORED
    expected = logits[valid].log_softmax(-1).gather(1, x["target"][valid, None])[:, 0]
    for results, _, _ in ranks:
        got = results["padding", "fp64"]["logprob"][valid]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    last = ranks[1][0]["padding", "fp64"]
    assert not last["dweight"][140 - CUT :].any()
    assert not last["dbias"][140 - CUT :].any()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_two_shards(ranks: list, name: str) -> None:
    expected = LOSSES[name]()
    ours = [losses[name] for _, _, losses in ranks]
    torch.testing.assert_close(ours[0]["loss"], expected["loss"])
    assert torch.equal(ours[0]["loss"], ours[1]["loss"])
    torch.testing.assert_close(torch.cat([o["dweight"] for o in ours]), expected["dweight"])


@pytest.mark.parametrize(("kind", "value"), [("too large", COLUMNS), ("negative", -3)])
def test_a_target_in_no_shard_is_named_on_every_rank(ranks: list, kind: str, value: int) -> None:
    for _, messages, _ in ranks:
        assert messages[kind] == (
            "linear_logprob: target[2]: expected an id in the shard of one rank of tp_group, "
            f"got {value}, which 0 ranks have"
        )


def test_the_share_of_a_confident_shard_keeps_its_small_complement() -> None:
    """1 − p of a confident token lives in log(share): it must not be lost beside the lse."""
    shards = combine(torch.tensor([[30.0], [5.0]], dtype=torch.float32))
    expected = -torch.log1p(torch.exp(torch.tensor(-25.0, dtype=torch.float64)))
    torch.testing.assert_close(shards.log_mass[0].double()[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grad", ["hidden head", "hidden"])
def test_a_padded_vocabulary_without_shards(grad: str) -> None:
    x = problem({}, torch.float64)
    hidden, weight = x["hidden"].requires_grad_(), x["weight"].requires_grad_("head" in grad)
    target = x["target"].clamp(0, 89)
    got = r1kernels.linear_logprob(hidden, weight, target, vocab_size=90).logprob
    expected = (hidden @ weight[:90].T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(got, expected)
    leaves = [t for t in (hidden, weight) if t.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, x["upstream"]),
        torch.autograd.grad(expected, leaves, x["upstream"]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_start": 3}, "vocab_start: expected 0 without a tp_group, got 3"),
        ({"vocab_size": 0}, "vocab_size: expected a whole number, 1 or more, got 0"),
    ],
)
def test_bad_input_is_named(options: dict[str, int], message: str) -> None:
    x = problem({}, torch.float32)
    with pytest.raises(ValueError, match=message):
        r1kernels.linear_logprob(x["hidden"], x["weight"], x["target"], **options)
