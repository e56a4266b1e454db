"""Sums over a vocabulary of a real model: a chain over all of it rounds at every column.

The contract's cases have a few hundred columns, where no order of summation can be told from
another. Each regime of the C++ kernels is held against float64 here: shares kept or made anew, a
frozen head, a shard.
"""

import pytest
import torch

import r1kernels
from r1kernels.head import head
from r1kernels.head.linear_logprob_op import LINEAR_LOGPROB, LINEAR_LOGPROB_BACKWARD, TILE_ROWS

ROWS, WIDTH, COLUMNS = 7, 40, 49152
# Of the largest value: a row's statistics are float32 whatever the operands, and one chain over V
# is 3e-7 to 6e-7 off. Gradients are of shares in the operands' dtype.
STATISTICS = 2e-7
GRADIENT = {torch.float32: 1.2e-6, torch.bfloat16: 4e-3}
REGIMES = {
    "kept": {"kept_rows": TILE_ROWS},
    "made anew": {},
    "frozen head": {"frozen_head": True},
    "shard": {"sharded": True},
    "entropy": {"entropy": True},
}


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, WIDTH, generator=rng).to(dtype)
    weight = (torch.randn(COLUMNS, WIDTH, generator=rng) * (2 / WIDTH**0.5)).to(dtype)
    return hidden, weight, torch.randint(COLUMNS, (ROWS,), generator=rng)


def run(hidden, weight, target, kept_rows=0, frozen_head=False, sharded=False, entropy=False):
    forward = LINEAR_LOGPROB(
        hidden, weight, target, None, None, None, 1.0, None, entropy, entropy, kept_rows,
        frozen_head, head.NO_IGNORE, sharded,
    )  # fmt: skip
    logprob, entropies, lse, kept, dhidden = forward
    found = {"logprob": logprob, "lse": lse, "entropy": entropies}
    if frozen_head:
        return found | {"dhidden": dhidden}
    ones = torch.ones_like(lse)
    dhidden, dweight, _ = LINEAR_LOGPROB_BACKWARD(
        ones, ones if entropy else ones[:0], hidden, weight, target, None, None, logprob, lse,
        entropies, kept, None, 1.0, None, entropy, head.NO_IGNORE, sharded, True, True, False,
    )  # fmt: skip
    return found | {"dhidden": dhidden, "dweight": dweight}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_linear_logprob_is_as_exact_as_its_products(regime, dtype):
    hidden, weight, target = problem(dtype)
    with r1kernels.using("cpp", LINEAR_LOGPROB, LINEAR_LOGPROB_BACKWARD):
        found = run(hidden, weight, target, **REGIMES[regime])
    with r1kernels.using("torch", LINEAR_LOGPROB, LINEAR_LOGPROB_BACKWARD):
        true = run(hidden.double(), weight.double(), target, **REGIMES[regime])
    for name, exact in true.items():
        if exact.numel():
            error = ((found[name].double() - exact).abs().max() / exact.abs().max()).item()
            allowed = GRADIENT[dtype] if name.startswith("d") else STATISTICS
            assert error <= allowed, (name, error)
