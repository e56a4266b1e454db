"""A user's reward function: found by its name, called, and held to what it may return."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from r1train.config.schema import ConfigError, nearest, shown

Values = list[float | None]
GIVEN = ("prompts", "completions", "completion_ids")
"""What every function is offered, beside the columns of the problems."""


class FunctionFailed(Exception):
    """A call that raised or returned what is no reward; the message says which."""


@dataclass(frozen=True)
class UserFunction:
    """A callable with the signature of TRL's reward functions."""

    spec: str
    """As in `rewards.functions`."""
    name: str
    call: Callable[..., Any]
    file: str
    """Where its code stands, for messages."""

    @property
    def in_process(self) -> bool:
        return bool(getattr(self.call, "in_process", False))

    def parameters(self) -> tuple[list[str], list[str]] | None:
        """Names that it takes and those that it needs; None where it takes any."""
        try:
            parameters = inspect.signature(self.call).parameters.values()
        except (TypeError, ValueError):  # of what is not written in Python
            return None
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return None
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return [p.name for p in named], [p.name for p in named if p.default is p.empty]

    def __call__(self, arguments: Mapping[str, Sequence[Any]]) -> Values:
        """The rewards of a batch, checked. Raises FunctionFailed."""
        parameters = self.parameters()
        taken = arguments.keys() if parameters is None else arguments.keys() & set(parameters[0])
        try:
            returned = self.call(**{name: arguments[name] for name in taken})
            if inspect.isawaitable(returned):
                returned = asyncio.run(_awaited(returned))
        except (Exception, SystemExit) as error:
            raise FunctionFailed(f"{self.spec} raised {self._describe(error)}") from error
        return self._checked(returned, len(arguments["completions"]))

    def _checked(self, returned: Any, count: int) -> Values:
        wanted = f"expected a list of {count}, one reward for each completion"
        if isinstance(returned, str | bytes | Mapping):
            raise FunctionFailed(f"{self.spec} returned {shown(returned)}: {wanted}")
        try:
            values = list(returned)
        except TypeError:
            raise FunctionFailed(f"{self.spec} returned {shown(returned)}: {wanted}") from None
        if len(values) != count:
            raise FunctionFailed(f"{self.spec} returned {len(values)} values: {wanted}")
        return [self._number(value) for value in values]

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        number = math.nan
        try:
            scalar = value.item() if hasattr(value, "item") else value  # of NumPy or PyTorch
            if isinstance(scalar, int | float):
                number = float(scalar)
        except (ValueError, RuntimeError, OverflowError):  # of an array, or an integer too large
            pass
        if not math.isfinite(number):
            raise FunctionFailed(
                f"{self.spec} returned {shown(value)}: expected a finite number, or None where it "
                "does not apply"
            )
        return number

    def _describe(self, error: BaseException) -> str:
        """Type and message of an error, and the line of the user's file that it came from."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == self.file]
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        if not own:
            return text
        return f"{text} ({Path(self.file).name}, line {own[-1].lineno}: {own[-1].line})"


def load_function(spec: str) -> UserFunction:
    """The function that `file.py:name` or `package.module:name` stands for.

    Files are sought from the current folder, and may import what lies beside them. Raises
    ConfigError where there is none, or its module cannot be imported.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(
            f"rewards.functions: {shown(spec)}: expected file.py:name or package.module:name"
        )
    module = _module(place, spec)
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    call = getattr(module, name, None)
    if call is None:
        known = nearest(name, functions) if functions else "it has no functions"
        raise ConfigError(f"rewards.functions: {place} has no function {name!r}: {known}")
    if not callable(call):
        raise ConfigError(f"rewards.functions: {spec} is a {type(call).__name__}, not a function")
    code = getattr(inspect.unwrap(call), "__code__", None)
    return UserFunction(spec, name, call, code.co_filename if code else "")


def _module(place: str, spec: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        where = "" if path.is_absolute() else f" (in {Path.cwd()})"
        raise ConfigError(f"rewards.functions: no such file: {path}{where}")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that its files hide no library
    try:
        return _import_file(path.resolve()) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(path.resolve())]
        line = f" (line {own[-1].lineno}: {own[-1].line})" if own else ""
        raise ConfigError(
            f"rewards.functions: {place} cannot be imported: {type(error).__name__}: {error}{line}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    """The module, imported once, under the path as its name: no library has such a one."""
    name = str(path)
    if name in sys.modules:
        return sys.modules[name]
    found = spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[name] = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
