"""What editors and the reference show of the package: every public name is documented and typed."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any, is_typeddict

import pytest

import r1kernels
from r1kernels.policy import losses
from r1kernels.policy import policy_loss_options as options

MODULES = ["r1kernels", "r1kernels.nn"]
if importlib.util.find_spec("transformers"):
    MODULES.append("r1kernels.hf")

# Arguments that are handed on to what only the caller knows.
HANDED_ON = {
    "r1kernels.explain": {"args", "kwargs"},  # a call of any function
    "r1kernels.nn.FP8Optimizer": {"options"},  # of any class of torch.optim
    "r1kernels.hf.logprobs": {"inputs"},  # of the model's own forward
    "r1kernels.hf.with_hidden": {"inputs"},
}
SOURCE_FILE = re.compile(r"[\w/]+\.(?:py|cpp|cu|cuh|h)\b|\b(?:csrc|r1kernels|tests)/\w+")


def public() -> Iterator[tuple[str, Any]]:
    """Every public name, and those of the methods and properties of its class."""
    for name in MODULES:
        module = importlib.import_module(name)
        for item in module.__all__:
            value = getattr(module, item)
            yield f"{name}.{item}", value
            if inspect.isclass(value):
                for member, method in vars(value).items():
                    function = getattr(method, "__func__", getattr(method, "fget", method))
                    if not member.startswith("_") and inspect.isfunction(function):
                        yield f"{name}.{item}.{member}", function


PUBLIC = dict(public())


def fields(value: type) -> list[str]:
    """The names of the fields of a NamedTuple, a dataclass or a TypedDict."""
    named = hasattr(value, "_fields") or hasattr(value, "__dataclass_fields__")
    return list(value.__annotations__) if named or is_typeddict(value) else []


def documented_fields(value: type) -> set[str]:
    """The fields that have a string below them."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(body, ast.ClassDef)
    found = set()
    for before, after in zip(body.body, body.body[1:], strict=False):
        text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if text and isinstance(before, ast.AnnAssign):
            found.add(before.target.id)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_names_of_a_module_are_sorted_and_there(module: str) -> None:
    found: ModuleType = importlib.import_module(module)
    assert found.__doc__
    assert len(set(found.__all__)) == len(found.__all__)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_documented(name: str) -> None:
    doc = PUBLIC[name].__doc__
    assert doc
    # What NamedTuple and dataclass make where nobody wrote one.
    assert not doc.startswith(f"{PUBLIC[name].__name__}(")


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_every_field_is_documented(name: str) -> None:
    value = PUBLIC[name]
    known = documented_fields(value)
    if is_typeddict(value):  # which does not tell what it inherits; keywords are fields of a class
        for other in (options.PolicyLossOptions, options.LossOptions, options.FusedLossOptions):
            known |= documented_fields(other)
    assert [field for field in fields(value) if field not in known] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_explains_and_names_no_source_file(name: str) -> None:
    assert SOURCE_FILE.findall(PUBLIC[name].__doc__ or "") == []


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_are_typed_and_named(name: str) -> None:
    value = PUBLIC[name]
    if hasattr(value, "_fields") or is_typeddict(value):
        return  # classes of fields
    for argument in inspect.signature(value).parameters.values():
        if argument.name in ("self", "cls"):
            continue
        assert argument.annotation is not inspect.Parameter.empty, argument
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            known = argument.name in HANDED_ON.get(name, ())
            assert known or "Any" not in str(argument.annotation), argument


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name: str) -> None:
    """By its name, in the docstring of the function, or of the class that it makes."""
    value = PUBLIC[name]
    doc = value.__doc__ or ""
    if "Args:" not in doc:
        return  # short enough to say it in its sentences
    parameters = inspect.signature(value).parameters
    names = [each for each in parameters if each not in ("self", "cls")]
    assert [each for each in names if not re.search(rf"(?<!\w){each}(?!\w)", doc)] == []


def test_the_options_of_the_losses_are_those_of_their_table() -> None:
    fields = [each for each in dataclasses.fields(options.PolicyLossOptions) if each.init]
    assert {each.name for each in fields} >= set(losses.OPTIONS)
    assert options.LossOptions.__annotations__.keys() == {each.name for each in fields}
    types = [
        annotation.__forward_arg__ for annotation in options.LossOptions.__annotations__.values()
    ]
    assert types == [each.type for each in fields]


def keywords(function: Any) -> set[str]:
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.kind is p.KEYWORD_ONLY}


def test_the_fused_loss_takes_every_keyword_of_the_loss() -> None:
    """But for entropy, which is a tensor there, and a wish here."""
    taken = keywords(r1kernels.fused_linear_grpo_loss)
    assert keywords(r1kernels.policy_loss) <= taken
    assert not taken & options.LossOptions.__annotations__.keys()


def test_the_loss_of_a_model_takes_every_keyword_of_the_fused_one() -> None:
    """But for those that the model, its head and the completion mask give."""
    given = {"bias", "logit_scale", "softcap", "cu_seqlens", "mask"}
    given |= {"tp_group", "vocab_start", "vocab_size"}
    handed = set(options.FusedLossOptions.__annotations__)
    whole = keywords(r1kernels.fused_linear_grpo_loss) | options.LossOptions.__annotations__.keys()
    assert handed == whole - given
