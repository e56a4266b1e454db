"""Patched models in copies, files and other processes; on the meta device; under another dtype."""

from __future__ import annotations

import copy
import functools
import io
import multiprocessing
import pickle
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r1kernels import hf
from tests.moe_models import tiny, tokens

transformers = pytest.importorskip("transformers")


LLAMA = {
    "vocab_size": 67, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes)).eval()


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("carry", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "DeepseekV3"])
def test_what_comes_out_is_patched_and_on_its_own(family: str, carry: Any) -> None:
    model = hf.patch(llama() if family == "Llama" else tiny(family))
    ids = tokens()
    expected = model(ids, labels=ids).loss
    other = carry(model)
    found = other(ids, labels=ids)
    assert found.logits is None
    assert torch.equal(found.loss, expected)
    assert [r.layer for r in hf.routers(other)] == [r.layer for r in hf.routers(model)]
    assert all(router.module in {*other.modules()} for router in hf.routers(other))
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert torch.equal(model(ids, labels=ids).loss, expected)
    assert other(ids, labels=ids).loss.item() == pytest.approx(torch.tensor(67.0).log().item())
    other.to(torch.bfloat16)  # the routers' _apply came along
    for router in hf.routers(other):
        assert router.bias is None or router.bias.dtype == torch.float32
    hf.unpatch(other)
    assert other(ids, labels=ids).logits is not None
    assert model(ids, labels=ids).logits is None


def test_fp8_layers_come_along() -> None:
    model = llama(hidden_size=128, intermediate_size=128)
    hf.patch(model, fp8=True)
    ids = tokens()
    expected = model(ids, labels=ids).loss
    other = pickled(model)
    assert torch.equal(other(ids, labels=ids).loss, expected)
    assert hf.explain_fp8(other) == hf.explain_fp8(model)
    hf.unpatch(other)
    assert not torch.equal(other(ids, labels=ids).loss, expected)


def loss_elsewhere(model: Any, ids: Tensor, results: Any) -> None:
    results.put(float(model(ids, labels=ids).loss))


def test_loading_registers_the_experts_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.moe import ExpertsInterface

    model, ids = hf.patch(tiny("Qwen3Moe")), tokens()
    text = pickle.dumps(model)
    monkeypatch.delitem(ExpertsInterface._global_mapping, "r1")
    assert torch.equal(pickle.loads(text)(ids, labels=ids).loss, model(ids, labels=ids).loss)


@pytest.mark.slow  # the process imports transformers anew
def test_another_process_gets_it() -> None:
    model, ids = hf.patch(tiny("Qwen3Moe")), tokens()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=loss_elsewhere, args=(model, ids, results))
    process.start()
    found = results.get(timeout=120)
    process.join()
    assert found == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


@functools.wraps(transformers.LlamaForCausalLM.forward)
def somebody_s_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    return type(model).forward(model, *args, **kwargs)


def test_a_patch_below_ours_comes_along() -> None:
    """Or says that it cannot: never is the class's own forward run in its place."""
    model, ids = llama(), tokens()
    somebody_s_forward.__qualname__ = somebody_s_forward.__name__ = "somebody_s_forward"
    somebody_s_forward.__module__ = __name__
    model.forward = MethodType(somebody_s_forward, model)
    other = pickled(hf.patch(model))
    assert torch.equal(other(ids, labels=ids).loss, model(ids, labels=ids).loss)
    forward = hf.unpatch(other).forward
    assert (forward.__func__, forward.__self__) == (somebody_s_forward, other)
    hf.unpatch(model).forward = MethodType(lambda *args, logits_to_keep=0, **kwargs: None, model)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickled(hf.patch(model))


DENSE: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 2.0},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 7.0},
}


def model_of(family: str) -> Any:
    if family not in DENSE:
        return tiny(family, output_router_logits=True)
    config = getattr(transformers, f"{family}Config")(**LLAMA, **DENSE[family])
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.mark.parametrize("family", [*DENSE, "Qwen3Moe", "Mixtral", "DeepseekV3"])
def test_on_the_meta_device(family: str) -> None:
    """As FSDP2 wants it: patched without weights, which come later."""
    real = model_of(family)
    with torch.device("meta"):
        model = type(real)(copy.deepcopy(real.config)).eval()
        assert hf.patch(model) is model
    assert model.lm_head.weight.is_meta
    model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict())
    # Buffers that checkpoints lack, such as frequencies.
    for (_, ours), (_, theirs) in zip(model.named_buffers(), real.named_buffers(), strict=True):
        ours.copy_(theirs)
    hf.patch(real)
    ids = tokens()
    assert hf.head_of(model).map == hf.head_of(real).map
    assert torch.equal(model(ids, labels=ids).loss, real(ids, labels=ids).loss)


def test_meta_refuses_what_it_refuses_elsewhere() -> None:
    class Halved(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            logits = self.lm_head(self.model(input_ids).last_hidden_state / 2)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    with torch.device("meta"):
        model = Halved(llama().config)
    with pytest.raises(NotImplementedError, match="it transforms the hidden states before its"):
        hf.patch(model)


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "DeepseekV3"])
def test_under_another_default_dtype(family: str) -> None:
    """from_pretrained and many a script build and patch models under bfloat16."""
    model = (llama() if family == "Llama" else tiny(family)).bfloat16()
    ids = tokens()
    expected = hf.patch(copy.deepcopy(model))
    rules = [router.rule for router in hf.routers(expected)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        hf.patch(model)
        found = model(ids, labels=ids).loss
        scores = hf.logprobs(model, ids).logprob
    finally:
        torch.set_default_dtype(torch.float32)
    assert [router.rule for router in hf.routers(model)] == rules
    assert torch.equal(found, expected(ids, labels=ids).loss)
    assert torch.equal(scores, hf.logprobs(expected, ids).logprob)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 5)


class DistributedDataParallel(nn.Module):
    """What the real one looks like from outside, without its process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: Net(), "got a Net; for a model of your own call r1kernels.linear_cross"),
        (DistributedDataParallel, r"got a DistributedDataParallel around a LlamaForCausalLM; patch "
         r"the model before it is wrapped, as in DistributedDataParallel\(hf.patch\(model\)\)"),
        (torch.nn.DataParallel, r"as in DataParallel\(hf.patch\(model\)\), .* \(here .module\)"),
        (torch.compile, r"got an OptimizedModule around .*torch.compile\(hf.patch\(model\)\)"),
        (lambda model: "Qwen/Qwen3-0.6B", "got the name 'Qwen/Qwen3-0.6B'; load it first"),
        (lambda model: model.config, "expected a HuggingFace model, got a LlamaConfig"),
    ],
    ids=["module", "ddp", "data parallel", "compiled", "name", "config"],
)  # fmt: skip
@pytest.mark.parametrize("call", [hf.patch, hf.unpatch, hf.patch_moe, hf.patch_fp8, hf.head_of])
def test_what_is_no_model_gets_a_remedy(call: Any, wrap: Any, message: str) -> None:
    model = llama()
    with pytest.raises(TypeError, match=message):
        call(wrap(model))
    assert "forward" not in vars(model)


def test_a_model_without_a_head_gets_a_remedy() -> None:
    with pytest.raises(NotImplementedError, match="no output embeddings; load it as a causal LM"):
        hf.patch(llama().model)


def test_weights_of_nan_are_called_by_their_name() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = float("nan")
    message = r"weights are NaN or infinite \(model.layers.0.mlp.up_proj.weight\)"
    with pytest.raises(ValueError, match=message):
        hf.patch(model)
    assert "forward" not in vars(model)


def test_overflow_is_not_called_nan_weights() -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(1e38)
        model.model.layers[0].mlp.down_proj.weight.fill_(1e30)
        model.model.norm.variance_epsilon = float("nan")
    with pytest.raises(ValueError, match=r"hidden states are NaN or infinite in torch\.float32"):
        hf.patch(model)
