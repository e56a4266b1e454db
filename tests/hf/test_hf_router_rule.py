"""Routers are known by what they do: the same code under another name, and other code."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1kernels import hf
from r1kernels.hf.experts.router_rule import router_rule
from tests.moe_models import LAYERS, tiny, tokens

pytest.importorskip("transformers")

E, H, K = 16, 24, 3
CONFIG: dict[str, Any] = {
    "num_experts_per_tok": K, "num_local_experts": E, "num_experts": E, "n_routed_experts": E,
    "moe_num_experts": E, "moe_topk": K, "hidden_size": H, "routed_scaling_factor": 2.5,
    "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "topk_method": "group_limited_greedy",
    "scoring_func": "sqrtsoftplus", "expert_selection_fn": "sigmoid",
}  # fmt: skip
SOFTMAX = {"score": "softmax", "num_groups": 1, "top_k_groups": 1, "scale": 1.0}
OF_CHOSEN = SOFTMAX | {"order": "topk_first"}
SIGMOID = {
    "score": "sigmoid", "order": "score_first", "normalize": True,
    "num_groups": 4, "top_k_groups": 2, "scale": 2.5,
}  # fmt: skip
ONE_GROUP = {"num_groups": 1, "top_k_groups": 1}

KNOWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("deepseek_v3.DeepseekV3TopkRouter", {}, SIGMOID),
    ("deepseek_v3.DeepseekV3TopkRouter", {"norm_topk_prob": False}, SIGMOID | {"normalize": False}),
    ("deepseek_v3.DeepseekV3TopkRouter", {"n_group": 1, "topk_group": 1}, SIGMOID | ONE_GROUP),
    ("glm4_moe.Glm4MoeTopkRouter", {}, SIGMOID),
    ("dots1.Dots1TopkRouter", {}, SIGMOID),
    ("kimi_linear.KimiLinearTopkRouter", {}, SIGMOID),
    ("nemotron_h.NemotronHTopkRouter", {}, SIGMOID),
    ("minimax_m3_vl.MiniMaxM3VLTopKRouter", {}, SIGMOID | ONE_GROUP | {"scale": 1.0}),
    (
        "deepseek_v2.DeepseekV2TopkRouter",
        {},
        SIGMOID | {"score": "softmax", "normalize": False},
    ),
    (
        "deepseek_v2.DeepseekV2TopkRouter",
        {"topk_method": "greedy"},
        SOFTMAX | {"order": "score_first", "scale": 2.5},
    ),
    ("deepseek_v4.DeepseekV4TopKRouter", {}, SIGMOID | ONE_GROUP | {"score": "sqrtsoftplus"}),
    ("qwen3_moe.Qwen3MoeTopKRouter", {}, OF_CHOSEN),
    (
        "qwen3_moe.Qwen3MoeTopKRouter",
        {"norm_topk_prob": False},
        SOFTMAX | {"order": "score_first", "normalize": False},
    ),
    ("olmoe.OlmoeTopKRouter", {}, OF_CHOSEN),
    ("qwen3_next.Qwen3NextTopKRouter", {}, OF_CHOSEN),
    ("mixtral.MixtralTopKRouter", {}, OF_CHOSEN),
    ("gpt_oss.GptOssTopKRouter", {}, OF_CHOSEN),
    ("granitemoe.GraniteMoeTopKRouter", {}, OF_CHOSEN),
    ("aria.AriaTextTopKRouter", {}, OF_CHOSEN),
    (
        "cohere2_moe.Cohere2MoeTopKRouter",
        {},
        SIGMOID | ONE_GROUP | {"scale": 1.0},
    ),
]


def router_class(path: str) -> Any:
    family, name = path.split(".")
    return getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)


@pytest.mark.parametrize(
    ("path", "changes", "options"), KNOWN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_families(path: str, changes: dict[str, Any], options: dict[str, Any]) -> None:
    config = SimpleNamespace(**CONFIG | changes)
    rule = router_rule(router_class(path)(config))
    assert not isinstance(rule, str), rule
    assert options.items() <= rule.options.items()


class Plain(nn.Module):
    """Mixtral's router; what follows differs from it in one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = E, K
        self.weight = nn.Parameter(torch.zeros(E, H))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    def forward(self, hidden: Tensor) -> Any:
        logits = self.logits(hidden)
        weights, ids = logits.softmax(-1).topk(self.top_k)
        return logits, weights / weights.sum(-1, keepdim=True), ids


class WithAnotherScale(Plain):
    def forward(self, hidden: Tensor) -> Any:
        logits, weights, ids = super().forward(hidden)
        return logits, weights / self.top_k, ids


class WithCappedLogits(Plain):
    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden).tanh()


class WithNoiseInTraining(Plain):
    def logits(self, hidden: Tensor) -> Tensor:
        noise = torch.rand_like(hidden) if self.training else 1
        return super().logits(hidden * noise)


class WithTheWorst(Plain):
    def forward(self, hidden: Tensor) -> Any:
        logits = self.logits(hidden)
        weights, ids = logits.softmax(-1).topk(self.top_k, largest=False)
        return logits, weights / weights.sum(-1, keepdim=True), ids


class WithoutIds(Plain):
    def forward(self, hidden: Tensor) -> Any:
        return super().forward(hidden)[:2]


class WithPositions(Plain):
    def forward(self, hidden: Tensor, positions: Tensor) -> Any:
        return super().forward(hidden)


class WithTwoMaps(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(H, H)


class WithAThreshold(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Buffer(torch.zeros(E))


class WithAnError(Plain):
    def forward(self, hidden: Tensor) -> Any:
        raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (WithAnotherScale, "it chooses or weighs in a way that moe_route does not"),
        (WithTheWorst, "it chooses or weighs in a way that moe_route does not"),
        (WithCappedLogits, "its output is not the logits of a linear map, weights and ids"),
        (WithNoiseInTraining, "its output is not the logits of a linear map, weights and ids"),
        (WithoutIds, "its output is not the logits of a linear map, weights and ids"),
        (WithPositions, "its forward takes more than hidden states"),
        (WithTwoMaps, "it has modules with parameters"),
        (WithAThreshold, "it has parameters or buffers of another kind"),
        (WithAnError, r"its forward does not run on rows alone (no)"),
    ],
)
def test_what_is_not_a_rule(cls: Any, reason: str) -> None:
    assert not isinstance(router_rule(Plain()), str)
    router, state = cls().eval(), torch.get_rng_state()
    assert router_rule(router) == reason
    assert torch.equal(torch.get_rng_state(), state)


def test_the_modules_values_and_device_do_not_matter() -> None:
    with torch.device("meta"):
        rule = router_rule(Plain())
    assert rule == router_rule(Plain().to(torch.bfloat16))
    assert not isinstance(rule, str)


def test_an_unknown_router_is_left_alone_with_a_warning() -> None:
    model, ids = tiny("DeepseekV3"), tokens()
    gate, other = (layer.mlp.gate for layer in model.model.layers)
    original = gate.forward
    gate.forward = changed = lambda hidden: original(hidden.clone())
    expected = model(ids).logits
    with pytest.warns(UserWarning, match="DeepseekV3TopkRouter: left as it is, since its forward"):
        hf.patch_moe(model)
    assert [router.module for router in hf.routers(model)] == [other]
    assert len(model.model.layers) == LAYERS
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    hf.unpatch_moe(model)
    assert gate.forward is changed
