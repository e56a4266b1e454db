"""Which experts each token goes to, how much each counts, and where their rows will stand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.moe import route_reference as formulas
from r1kernels.moe import sort
from r1kernels.moe.sort import MAX_EXPERTS

SCORES = ("sigmoid", "softmax", "sqrtsoftplus")
ORDERS = ("score_first", "topk_first")


class Routing(NamedTuple):
    """Choices of T tokens, k of E experts each, and where their rows stand.

    Slot t·k + j is the j-th choice of token t. The last four fields are those of ``moe_sort``, and
    None of a routing with ``align=None``; P is T·k without ``align``, and more with it.
    """

    weights: Tensor
    """[T, k] float32 (float64 for float64 logits): what each chosen expert's output is multiplied
    with; 0 for none. Differentiable."""
    ids: Tensor
    """[T, k] int64: chosen experts, best first; E stands for none."""
    counts: Tensor
    """[E] int32: rows of each expert."""
    offsets: Tensor
    """[E + 1] int32: expert e's rows are [offsets[e], offsets[e + 1]), padding at their end."""
    gather: Tensor
    """[P] int32: the slot of each row, −1 at padding and from offsets[E] on."""
    inverse: Tensor
    """[T, k] int32: the row of each slot, −1 where the slot goes to no expert."""

    @classmethod
    def of(cls, weights: Tensor, ids: Tensor, num_experts: int, *, align: int = 1) -> Routing:
        """A routing of choices that somebody else made.

        Args:
            weights: [T, k], floating point; 16 bits become float32. Differentiable.
            ids: [T, k], int64 or int32; num_experts and above stand for no expert.
            num_experts: E, up to 1024.
            align: of ``moe_sort``.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        shapes = check.Shapes("Routing.of")
        shapes("weights", weights, "T k", check.FLOATS)
        shapes("ids", ids, "T k", check.INTS)
        found = sort.moe_sort(ids, num_experts, align=align)
        if weights.dtype not in (torch.float32, torch.float64):
            weights = weights.float()
        return cls(weights, ids, *found)


def check_routing(op: str, routing: Any) -> None:
    """``routing`` is a ``Routing``.

    Raises:
        TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(routing, Routing):
        raise TypeError(
            f"{op}: routing: expected a Routing, got {check.described(routing)} (moe_route makes "
            "one, Routing.of(weights, ids, num_experts) one of choices that were made elsewhere)"
        )


def check_sort(op: str, routing: Routing, experts: int) -> None:
    """``routing`` is one of ``experts`` experts, and has the order of their rows.

    Raises:
        ValueError: saying of how many it is.
    """
    if routing.offsets is None or routing.offsets.shape != (experts + 1,):
        got = "one without (align=None)"
        if routing.offsets is not None:
            got = f"one of {routing.offsets.numel() - 1}"
        raise ValueError(
            f"{op}: routing: expected one of E = {experts} experts with its sort, got {got}"
        )


def moe_route(
    logits: Tensor,
    top_k: int,
    *,
    score: str = "sigmoid",
    order: str = "score_first",
    bias: Tensor | None = None,
    num_groups: int = 1,
    top_k_groups: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    replay_ids: Tensor | None = None,
    num_valid: Tensor | None = None,
    align: int | None = 1,
) -> Routing:
    """Top-k routing of DeepSeek-V3 and its relatives.

    DeepSeek-V3 (arXiv 2412.19437, 2.1.2): s = σ(logits); the choice is made by s + bias, among the
    ``top_k_groups`` groups with the largest sum of two best; w = scale·s/Σ s over the chosen.
    Qwen3-MoE, Mixtral: ``score="softmax"``. DeepSeek-V2: softmax with groups, each as good as its
    best. GPT-OSS: softmax of the chosen logits, ``order="topk_first"``.

    Choices are exact: made in float64, of equal keys the lower index first, the same on every
    backend (groups are compared by 48 bits of the sum of their two best). A NaN counts as −inf
    there, and makes its own weight NaN (with a softmax, the row's). An expert outside the best
    groups is never chosen.

    Args:
        logits: [T, E], float32, bfloat16, float16 or float64; E ≤ 1024.
        top_k: k, experts of a token.
        score: "sigmoid", "softmax" (over all E, or over the chosen with "topk_first") or
            "sqrtsoftplus" (√ln(1 + eᶻ), DeepSeek-V4).
        order: "score_first": scores, then choice. "topk_first": choice by logits (+ bias), then
            scores of the chosen.
        bias: [E] float32, added for the choice alone; a constant for autograd.
        num_groups, top_k_groups: groups of E/num_groups neighbours, and how many a token uses.
        normalize: divide the chosen scores by their sum + 1e-20.
        scale: times the weights (DeepSeek-V3: 2.5).
        replay_ids: [T, k], int64 or int32: choices made elsewhere, such as in the rollout. The
            weights, and their gradient, are those of the present logits. E or more: none.
        num_valid: [] or [1], int64 or int32: rows from it on are padding and go to no expert.
        align: of ``moe_sort``; None: leave the sort out.

    Returns:
        ``Routing``; gradients flow from weights to logits.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; within
            ``r1kernels.checked()`` also the place of a NaN among the logits.
    """
    _check(
        logits, top_k, score, order, bias, num_groups, top_k_groups, normalize, scale, replay_ids,
        num_valid, align,
    )  # fmt: skip
    check.numbers_if_checked("moe_route", "logits", logits)
    if bias is not None:
        bias = bias.detach()
    if replay_ids is not None:
        replay_ids = replay_ids.long()
    if num_valid is not None:
        num_valid = num_valid.reshape(1).long()
    found = MOE_ROUTE(
        logits, top_k, score, order, bias, num_groups, top_k_groups, normalize, scale,
        replay_ids, num_valid, align or 0,
    )  # fmt: skip
    return Routing(*(found if align is not None else (*found[:2], *(None,) * 4)))


@remembered
def _check(
    logits: Tensor,
    top_k: int,
    score: str,
    order: str,
    bias: Tensor | None,
    num_groups: int,
    top_k_groups: int,
    normalize: bool,
    scale: float,
    replay_ids: Tensor | None,
    num_valid: Tensor | None,
    align: int | None,
) -> None:
    shapes = check.Shapes("moe_route")
    shapes("logits", logits, "T E", check.FLOATS)
    experts = logits.shape[1]
    check.choice("moe_route", "score", score, SCORES)
    check.choice("moe_route", "order", order, ORDERS)
    if not 0 < experts <= MAX_EXPERTS:
        raise ValueError(f"moe_route: logits: expected 1 ≤ E ≤ {MAX_EXPERTS}, got {experts}")
    check.flag("moe_route", "normalize", normalize)
    check.number("moe_route", "scale", scale)
    if bias is not None:
        shapes("bias", bias, "E", (torch.float32, torch.float64))
    _check_groups(experts, top_k, num_groups, top_k_groups, score, order)
    if replay_ids is not None:
        shapes.sizes["k"] = top_k
        shapes("replay_ids", replay_ids, "T k", check.INTS)
    if num_valid is not None:
        if isinstance(num_valid, Tensor) and num_valid.numel() != 1:
            got = check.described(num_valid)
            raise ValueError(f"moe_route: num_valid: expected one number, got {got}")
        is_0d = isinstance(num_valid, Tensor) and num_valid.dim() == 0
        shapes("num_valid", num_valid, "" if is_0d else "1", check.INTS)
    if align is not None:
        sort.check_size("moe_route", experts, align)


def _check_groups(
    experts: int, top_k: int, num_groups: int, top_k_groups: int, score: str, order: str
) -> None:
    check.count("moe_route", "top_k", top_k)
    check.count("moe_route", "num_groups", num_groups)
    check.count("moe_route", "top_k_groups", top_k_groups)
    if experts % num_groups:
        raise ValueError(
            f"moe_route: num_groups: expected a divisor of E = {experts}, got {num_groups}"
        )
    if not 1 <= top_k_groups <= num_groups:
        raise ValueError(
            f"moe_route: top_k_groups: expected 1 ≤ top_k_groups ≤ num_groups = {num_groups}, "
            f"got {top_k_groups}"
        )
    size = experts // num_groups
    if num_groups > 1 and size < best_of_group(score, order):
        raise ValueError(
            f"moe_route: num_groups: expected groups of at least 2 experts, got E = {experts} in "
            f"{num_groups}"
        )
    if top_k > top_k_groups * size:
        raise ValueError(
            f"moe_route: top_k: expected top_k ≤ {top_k_groups * size}, the experts in "
            f"{top_k_groups} of {num_groups} groups, got {top_k}"
        )


def best_of_group(score: str, order: str) -> int:
    """How many of a group's best it is judged by."""
    return 1 if score == "softmax" or order == "topk_first" else 2


def reference(
    logits: Tensor,
    top_k: int,
    score: str,
    order: str,
    bias: Tensor | None,
    num_groups: int,
    top_k_groups: int,
    normalize: bool,
    scale: float,
    replay_ids: Tensor | None,
    num_valid: Tensor | None,
    align: int,
) -> tuple[Tensor, ...]:
    experts = logits.shape[1]
    if replay_ids is not None:
        ids = replay_ids.clamp(max=experts)
    else:
        key = formulas.keys(logits, score, order, bias, num_groups)
        best = best_of_group(score, order)
        ids = formulas.choose(key, top_k, num_groups, top_k_groups, best)
    if num_valid is not None:
        row = torch.arange(len(ids), device=ids.device)[:, None]
        ids = ids.where(row < num_valid, experts)
    ids = ids.clone(memory_format=torch.contiguous_format)  # a slice, and one of nothing if T = 0
    weights = formulas.weigh(logits, ids, score, order, normalize, scale)
    if align == 0:
        none = [ids.new_empty(0, dtype=torch.int32) for _ in range(4)]
        return weights, ids, *none
    return weights, ids, *sort.reference(ids, experts, align)


def _fake(*args: Any) -> tuple[Tensor, ...]:
    a = MOE_ROUTE.bind(args)
    logits, align, shape = a.logits, a.align, (a.logits.shape[0], a.top_k)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weights, ids = logits.new_empty(shape, dtype=dtype), logits.new_empty(shape, dtype=torch.int64)
    if align == 0:
        none = [ids.new_empty(0, dtype=torch.int32) for _ in range(4)]
        return weights, ids, *none
    return weights, ids, *sort.fake(ids, logits.shape[1], align)


def _validate(*args: Any) -> None:
    a = MOE_ROUTE.bind(args)
    if a.align != 0:
        sort.check_size("moe_route", a.logits.shape[1], a.align)
    replay_ids = a.replay_ids
    if replay_ids is not None and (replay_ids < 0).any():
        t, j = (replay_ids < 0).nonzero()[0].tolist()
        got = int(replay_ids[t, j])
        raise ValueError(f"moe_route: replay_ids[{t}, {j}]: expected ids ≥ 0, got {got}")


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs.logits, output[1])
    ctx.options = inputs.score, inputs.order, inputs.normalize, inputs.scale
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    logits, ids = ctx.saved_tensors
    dlogits = None if grad is None else MOE_ROUTE_BACKWARD(grad, logits, ids, *ctx.options)
    return MOE_ROUTE.gradients(logits=dlogits)


def _backward_fake(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


class Variant(NamedTuple):
    """The options of a family of models."""

    score: str = "sigmoid"
    order: str = "score_first"
    biased: bool = False
    groups: tuple[int, int] = (1, 1)
    normalize: bool = True
    scale: float = 1.0


DEEPSEEK_V3 = Variant(biased=True, groups=(8, 4), scale=2.5)
VARIANTS = {
    "DeepSeek-V3": DEEPSEEK_V3,
    "DeepSeek-V2": Variant("softmax", groups=(4, 2), normalize=False),
    "Qwen3-MoE": Variant("softmax"),
    "softmax, biased, not normalised": Variant("softmax", biased=True, normalize=False),
    "GPT-OSS": Variant("softmax", "topk_first"),
    "sigmoid of the chosen": Variant("sigmoid", "topk_first", normalize=False),
    "DeepSeek-V4": Variant("sqrtsoftplus", biased=True, scale=1.5),
}


def _case(
    name: str, tokens: int, experts: int, top_k: int, variant: Variant = DEEPSEEK_V3, *,
    dtype: torch.dtype = torch.float32, align: int = 1, ties: bool = False, strange: bool = False,
    replay: bool = False, num_valid: int | None = None, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens + experts)
        logits = torch.randn(tokens, experts, generator=rng)
        bias = torch.randn(experts, generator=rng) / 10 if variant.biased else None
        if ties:
            logits = logits.round()
            bias = None if bias is None else bias.round()
        if strange:
            for i, value in enumerate((torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 3e38, -3e38)):
                logits[i::7, i :: 5 + i] = value
            logits[-1] = torch.nan
            logits[-2] = -torch.inf
        ids = None
        if replay:
            ids = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :top_k].contiguous()
            ids[::5, 0] = experts + 3
            ids = ids.to(device)
        valid = None if num_valid is None else torch.tensor([num_valid], device=device)
        return (
            logits.to(device, dtype), top_k, variant.score, variant.order,
            None if bias is None else bias.to(device), *variant.groups, variant.normalize,
            variant.scale, ids, valid, align,
        )  # fmt: skip

    moved = tokens * (experts * dtype.itemsize + top_k * (12 + 8 * (align > 0)))
    return Case(name, make, flops=10.0 * tokens * experts, bytes=float(moved), bench=bench)


CASES = (
    *(_case(name, 61, 64, 6, variant) for name, variant in VARIANTS.items()),
    *(_case(f"{n}, ties", 61, 64, 6, v, ties=True) for n, v in VARIANTS.items()),
    *(_case(f"{n}, replay", 29, 32, 4, v, replay=True) for n, v in VARIANTS.items()),
    _case("bf16", 61, 64, 6, dtype=torch.bfloat16),
    _case("no sort", 61, 64, 6, align=0),
    _case("aligned", 61, 64, 6, align=128),
    _case("padding", 61, 64, 6, num_valid=40),
    _case("nothing but padding", 61, 64, 6, num_valid=0),
    _case("384 experts", 33, 384, 8, Variant(biased=True)),
    _case("1024 experts", 9, 1024, 16, Variant(biased=True, groups=(16, 3))),
    _case("all experts", 9, 12, 12, Variant()),
    _case("groups of two", 9, 12, 5, Variant(groups=(6, 3))),
    _case("7 experts", 9, 7, 3, Variant("softmax")),
    _case("one expert", 9, 1, 1, Variant()),
    _case("one token", 1, 256, 8),
    _case("no tokens", 0, 64, 6),
    _case("T 4096, E 256, choice", 4096, 256, 8, align=0, bench=True),
    _case("T 4096, E 256, k 8", 4096, 256, 8, bench=True),
    _case("T 4096, E 128, softmax", 4096, 128, 8, Variant("softmax"), bench=True),
)

# NaN and infinities; not among the cases, since opcheck takes any NaN for a difference.
STRANGE = tuple(_case(name, 61, 64, 6, v, strange=True) for name, v in VARIANTS.items())


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        inputs = case.make(device)
        a = MOE_ROUTE.bind(inputs)
        weights, ids, *_ = reference(*inputs)
        rng = torch.Generator().manual_seed(1)
        grad = torch.randn(weights.shape, generator=rng).to(weights)
        return grad, a.logits, ids, a.score, a.order, a.normalize, a.scale

    return Case(case.name, make, flops=case.flops, bytes=2 * case.bytes, bench=case.bench)


MOE_ROUTE = Op(
    "moe_route(Tensor logits, SymInt top_k, str score, str order, Tensor? bias, SymInt num_groups, "
    "SymInt top_k_groups, bool normalize, float scale, Tensor? replay_ids, Tensor? num_valid, "
    "SymInt align) -> (Tensor weights, Tensor ids, Tensor counts, Tensor offsets, Tensor gather, "
    "Tensor inverse)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.route",
)
MOE_ROUTE_BACKWARD = Op(
    "moe_route_backward(Tensor grad, Tensor logits, Tensor ids, str score, str order, "
    "bool normalize, float scale) -> Tensor",
    reference=formulas.backward,
    fake=_backward_fake,
    cases=tuple(
        _backward_case(case) for case in CASES if "sort" not in case.name and "k 8" not in case.name
    ),
    triton="r1kernels.moe.triton.route",
)
