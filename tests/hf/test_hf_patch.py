"""What a patched model keeps of the original: everything but the logits of a call with labels."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from r1kernels import hf

transformers = pytest.importorskip("transformers")

V, S = 53, 8


def tiny(**changes: Any) -> Any:
    sizes = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(1, V, (rows, S))


class NoLogits(TorchDispatchMode):
    """Fails on any tensor of more than zero rows of V columns."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        for tensor in output if isinstance(output, tuple) else (output,):
            made = isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] == V
            assert not (made and tensor.numel() and tensor.shape[0] != 16), func  # 16: weightᵀ
        return output


def test_no_logits_are_made() -> None:
    model, ids = tiny(), tokens(3)
    with pytest.raises(AssertionError), NoLogits():
        model(ids, labels=ids)
    hf.patch(model)
    with NoLogits():
        model(ids, labels=ids).loss.backward()
        hf.logprobs(model, ids, entropy=True)


def test_patching_again_sees_what_changed() -> None:
    model = tiny()
    hf.patch(model)
    hf.unpatch(model)
    replace_loss(model)
    with pytest.raises(NotImplementedError, match="its loss is not the cross-entropy"):
        hf.patch(model)


def test_without_labels_nothing_changes() -> None:
    model, ids = tiny(), tokens()
    expected = model(ids), model.generate(ids, max_new_tokens=4, do_sample=False)
    hf.patch(model)
    found = model(ids), model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(found[0].logits, expected[0].logits)
    assert torch.equal(found[1], expected[1])


def test_unpatch_restores_the_forward_of_the_class() -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    hf.unpatch(model)
    assert "forward" not in vars(model)
    assert model.forward.__func__ is type(model).forward
    assert not any(module._forward_hooks for module in model.modules())
    assert model(ids, labels=ids).logits is not None


def test_only_the_patched_instance_changes() -> None:
    model, other, ids = tiny(), tiny(), tokens()
    hf.patch(model)
    assert other(ids, labels=ids).logits is not None


def test_a_patch_over_another_patch_restores_it() -> None:
    model = tiny()
    before = model.forward = copy.copy(model.forward)
    hf.patch(model)
    hf.unpatch(model)
    assert model.forward is before


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert copied(ids, labels=ids).loss.item() == pytest.approx(torch.tensor(V).log().item())
    assert model(ids, labels=ids).loss != copied(ids, labels=ids).loss


def test_patching_draws_no_random_numbers_and_keeps_the_signature() -> None:
    model = tiny(attention_dropout=0.5).train()
    expected, state = inspect.signature(model.forward), torch.get_rng_state()
    hf.patch(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert inspect.signature(model.forward) == expected


def test_patch_gives_the_model_back_and_twice_is_once() -> None:
    model, ids = tiny(), tokens()
    assert hf.patch(model) is model
    assert hf.patch(model) is model
    assert model(ids, labels=ids).logits is None
    with pytest.raises(
        ValueError, match=r"fp8: expected an unpatched model, or .*, False; got True"
    ):
        hf.patch(model, fp8=True)
    assert hf.unpatch(model) is model
    assert "forward" not in vars(model)
    with pytest.raises(ValueError, match="unpatch: LlamaForCausalLM: expected a patched model"):
        hf.unpatch(model)


def test_labels_may_be_positional() -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    found = model(ids, None, None, None, None, ids)
    assert found.logits is None
    torch.testing.assert_close(found.loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("keep", [3, torch.tensor([1, 4, 6])], ids=["number", "indices"])
def test_logits_to_keep(keep: int | Tensor) -> None:
    model, ids = tiny(), tokens()
    labels = ids[:, -3:]
    expected = model(ids, labels=labels, logits_to_keep=keep).loss
    hf.patch(model)
    torch.testing.assert_close(model(ids, labels=labels, logits_to_keep=keep).loss, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_items_in_batch": 40},
        {"num_items_in_batch": torch.tensor(40)},
        {"ignore_index": 5},
        {"shift_labels": torch.arange(2 * S).view(2, S)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_arguments_of_the_loss(changes: dict[str, Any]) -> None:
    model, ids = tiny(), tokens()
    ids[0, 3] = 5
    expected = model(ids, labels=ids, **changes).loss
    hf.patch(model)
    torch.testing.assert_close(model(ids, labels=ids, **changes).loss, expected)


def test_trl_5619_the_loss_does_not_depend_on_the_micro_batches() -> None:
    model, ids = tiny(), tokens(4)
    labels = ids.masked_fill(torch.arange(S) >= torch.tensor([3, 8, 5, 7])[:, None], -100)
    hf.patch(model)
    total = (labels[:, 1:] != -100).sum()
    parts = [
        model(a, labels=b, num_items_in_batch=total).loss
        for a, b in zip(ids.split(1), labels.split(1), strict=True)
    ]
    torch.testing.assert_close(sum(parts), model(ids, labels=labels).loss)


def test_trainer_of_transformers(tmp_path: Path) -> None:
    """Accumulation, ``num_items_in_batch`` and all: the same weights after three steps."""
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row, "labels": row} for row in tokens(12).tolist()]
    for row, length in zip(rows, range(12), strict=True):
        row["labels"] = [-100] * (length % 5) + row["labels"][length % 5 :]

    def train(model: Any) -> Any:
        args = transformers.TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
            learning_rate=1e-2, logging_strategy="no",
        )  # fmt: skip
        transformers.Trainer(model, args, train_dataset=rows).train()
        return model

    model = tiny()
    other = copy.deepcopy(model)
    hf.patch(other)
    expected, found = train(model).state_dict(), train(other).state_dict()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_casts_the_head_too(dtype: torch.dtype) -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    expected = model(ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = model(ids, labels=ids).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_compiles_into_one_graph() -> None:
    model, ids = tiny().train(), tokens()
    hf.patch(model)
    expected = model(ids, labels=ids).loss
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids).loss
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
    )


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replace_head(model: Any) -> None:
    model.lm_head = Scaled(16, V, bias=False)


def replace_forward(model: Any) -> None:
    model.lm_head.forward = lambda x: x


def hook_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def replace_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, **kwargs: logits.mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_head, "expected a plain nn.Linear, got .*Scaled"),
        (replace_forward, "expected the forward of its class, got a forward of its own"),
        (hook_head, "expected no hooks, which would not run"),
        (replace_loss, "its loss is not the cross-entropy of the next token"),
    ],
)
def test_refuses_heads_it_would_not_honour(change: Any, message: str) -> None:
    model = tiny()
    change(model)
    with pytest.raises(NotImplementedError, match=message):
        hf.patch(model)
    assert "forward" not in vars(model)


class Wrapped(transformers.LlamaForCausalLM):
    """Its forward is what ``change`` makes of the original's output."""

    change: Any = staticmethod(lambda output: None)

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        self.change(output)
        return output


def squash(output: Any) -> None:
    output.logits = output.logits.sigmoid()


def forbid_a_token(output: Any) -> None:
    output.logits = output.logits.index_fill(-1, torch.tensor(3), -1e9)


def cut_columns(output: Any) -> None:
    output.logits = output.logits[..., :-1]


@pytest.mark.parametrize("change", [squash, forbid_a_token, cut_columns])
def test_refuses_logits_it_would_not_make(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrapped, "change", staticmethod(change))
    with pytest.raises(NotImplementedError, match="its logits are not a scaled or capped head"):
        hf.patch(Wrapped(tiny().config))


def test_refuses_hidden_states_changed_on_their_way() -> None:
    class Halved(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            logits = self.lm_head(self.model(input_ids).last_hidden_state / 2)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    with pytest.raises(NotImplementedError, match="it transforms the hidden states before its"):
        hf.patch(Halved(tiny().config))


def test_refuses_a_model_without_logits_to_keep() -> None:
    class Older(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            return super().forward(input_ids, labels=labels, **kwargs)

    with pytest.raises(NotImplementedError, match="its forward does not take logits_to_keep"):
        hf.patch(Older(tiny().config))


def test_tuples() -> None:
    model, ids = hf.patch(tiny()), tokens()
    expected = model(ids, labels=ids, output_hidden_states=True)
    found = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)  # no place for logits, as for all that is None
    assert torch.equal(found[0], expected.loss)
    assert torch.equal(found[-1][-1], expected.hidden_states[-1])


def test_with_hidden_wants_a_patched_model() -> None:
    with pytest.raises(ValueError, match="with_hidden: LlamaForCausalLM: expected a patched model"):
        hf.logprobs(tiny(), tokens())


def test_log_probabilities_of_no_token() -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    found = hf.logprobs(model, ids, labels=torch.full_like(ids, -100))
    assert torch.equal(found.logprob, torch.zeros(2, S - 1))
    found.logprob.sum().backward()


def test_accelerate_gives_the_patch_back() -> None:
    """Its ``prepare`` wraps the forward for autocast, its ``unwrap_model`` peels wrappers off."""
    accelerate = pytest.importorskip("accelerate.utils")
    model, ids = tiny(), tokens()
    hf.patch(model)
    model._original_forward = model.forward
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    wrapped = accelerate.convert_outputs_to_fp32(autocast(model.forward.__func__))
    model.forward = MethodType(wrapped, model)
    assert inspect.signature(model.forward) == inspect.signature(tiny().forward)
    assert model(ids, labels=ids).logits is None
    assert hf.logprobs(model, ids).logprob.dtype == torch.float32
    with pytest.raises(ValueError, match=r"unpatch: .*: its forward was replaced since"):
        hf.unpatch(model)
    accelerate.extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert model(ids, labels=ids).logits is None
    hf.unpatch(model)


def test_temperature_per_token() -> None:
    model, ids = tiny(), tokens()
    hf.patch(model)
    cold, hot = (hf.logprobs(model, ids, temperature=t).logprob for t in (0.5, 2.0))
    choice = torch.rand(2, S - 1) < 0.5
    found = hf.logprobs(model, ids, temperature=torch.where(choice, 0.5, 2.0)).logprob
    torch.testing.assert_close(found, torch.where(choice, cold, hot))
