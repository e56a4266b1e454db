"""Linear layers by this library's product: the same function, and left alone elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from r1train.model import products
from r1train.model.products import faster_than_mkl, linear_forward, patch_linear


@pytest.fixture
def small_llama():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def patched(small_llama, monkeypatch):
    """A model whose linear layers all multiply so, whatever the processor."""
    monkeypatch.setattr(products, "faster_than_mkl", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    model = copy.deepcopy(small_llama)
    patch_linear(model)
    return model


def linear_layers(model):
    return [layer for layer in model.modules() if type(layer) is torch.nn.Linear]


@pytest.mark.parametrize("shape", [(), (20,), (5, 3), (1, 2, 4), (0,)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_a_linear_layer(shape, bias, monkeypatch):
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias)
    x = torch.randn(*shape, 24, requires_grad=True)
    dy = torch.randn(*shape, 40)
    inputs = [x, *layer.parameters()]
    found = linear_forward(layer, x)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(y, inputs, dy) for y in (found, expected))
    torch.testing.assert_close(of_found, of_expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_pytorchs(dtype, monkeypatch):
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    layer, x = torch.nn.Linear(24, 40, dtype=dtype), torch.randn(20, 24, dtype=dtype)
    assert torch.equal(linear_forward(layer, x), F.linear(x, layer.weight, layer.bias))


def test_small_products_are_pytorchs(monkeypatch):
    layer, x = torch.nn.Linear(24, 40), torch.randn(20, 24)
    monkeypatch.setattr(products, "product", None)
    assert torch.equal(linear_forward(layer, x), F.linear(x, layer.weight, layer.bias))


def test_the_head_and_layers_that_are_replaced_already_stay(small_llama, monkeypatch):
    monkeypatch.setattr(products, "faster_than_mkl", lambda: True)
    model = copy.deepcopy(small_llama)
    other = linear_layers(model)[0]
    other.forward = other.forward
    before = vars(other)["forward"]
    patch_linear(model)
    assert vars(other)["forward"] is before
    assert "forward" not in vars(model.get_output_embeddings())
    inner = [layer for layer in linear_layers(model.base_model) if layer is not other]
    assert all("forward" in vars(layer) for layer in inner)


def test_a_model_on_another_device_stays(small_llama, monkeypatch):
    monkeypatch.setattr(products, "faster_than_mkl", lambda: True)
    patch_linear(small_llama.to("meta"))
    assert not any("forward" in vars(layer) for layer in linear_layers(small_llama))


def test_a_copy_multiplies_by_its_own_weights(patched):
    other = copy.deepcopy(patched)
    layer, x = linear_layers(other.base_model)[0], torch.randn(2, 8, other.config.hidden_size)
    with torch.no_grad():
        layer.weight.zero_()
    assert not layer(x).any()
    assert linear_layers(patched.base_model)[0](x).any()


def test_the_model_gives_the_same(small_llama, patched):
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(patched(ids).logits, small_llama(ids).logits)


def test_no_processor_is_taken_for_another(monkeypatch, tmp_path):
    """AVX-512 that MKL does not use: of AMD's processors alone."""
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for vendor, isa, expected in (
        ("AuthenticAMD", "avx512bf16", True),
        ("AuthenticAMD", "avx2", False),
        ("GenuineIntel", "amx", False),
        (None, "avx512", False),
    ):
        monkeypatch.setattr(products, "processor", lambda _, isa=isa: isa)
        products.CPUINFO.unlink(missing_ok=True)
        if vendor is not None:
            products.CPUINFO.write_text(f"vendor_id\t: {vendor}\n")
        assert faster_than_mkl.__wrapped__() is expected
