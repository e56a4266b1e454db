"""verl's own loss and advantage functions, without what the rest of verl would pull in.

Its ``core_algos`` is plain PyTorch, but importing it imports Ray, Hydra, tensordict. Here the two
files that hold the formulas are executed as they are, and everything else that they import is a
stand-in.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pytest

STAND_INS = (
    "omegaconf", "tensordict", "verl", "verl.trainer", "verl.trainer.config",
    "verl.trainer.ppo", "verl.utils", "verl.utils.device", "verl.utils.import_utils",
    "verl.workers", "verl.workers.config",
)  # fmt: skip
FORMULAS = {
    "verl.utils.torch_functional": "utils/torch_functional.py",
    "verl.trainer.ppo.core_algos": "trainer/ppo/core_algos.py",
}


class StandIn(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class ActorConfig(SimpleNamespace):
    """What the losses read of verl's configuration."""

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, name, default)


def core_algos() -> Any:
    found = find_spec("verl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("verl is not installed (pip install --no-deps verl==0.9.1)")
    root = Path(found.submodule_search_locations[0])
    modules: dict[str, Any] = {name: StandIn(name) for name in STAND_INS}
    modules["verl.utils.import_utils"].deprecated = lambda *args: lambda function: function
    modules["verl.workers.config"].ActorConfig = ActorConfig
    for name, module in modules.items():
        attach(modules, name, module)
    with mock.patch.dict(sys.modules, modules):
        for name, path in FORMULAS.items():
            spec = spec_from_file_location(name, root / path)
            assert spec is not None
            assert spec.loader is not None
            module = module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
            attach(modules, name, module)
        return module


def attach(modules: dict[str, Any], name: str, module: ModuleType) -> None:
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(modules[parent], leaf, module)
