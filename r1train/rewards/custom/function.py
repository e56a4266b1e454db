"""A user's reward function: found by its name, called, and held to what it may return."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import AsyncIterable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from r1train.config.schema import ConfigError, nearest, shown

Values = list[float | None]
GIVEN = ("prompts", "completions", "completion_ids")
"""What every function is offered, beside the columns of the problems."""
LONGEST_MESSAGE = 500
"""Characters of an error's message that are told: it may quote a completion."""


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
    """Of its module, for messages."""

    @property
    def in_process(self) -> bool:
        return bool(getattr(self.call, "in_process", False))

    def parameters(self) -> tuple[set[str] | None, list[str]]:
        """Names that it takes, where None is any, and those that it needs."""
        try:
            parameters = inspect.signature(self.call).parameters.values()
        except (TypeError, ValueError):  # of what is not written in Python
            return None, []
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        needed = [p.name for p in named if p.default is p.empty]
        return None if takes_any else {p.name for p in named}, needed

    def __call__(self, arguments: Mapping[str, Sequence[Any]]) -> Values:
        """The rewards of a batch, checked. Raises FunctionFailed."""
        takes, _ = self.parameters()
        given = {name: v for name, v in arguments.items() if takes is None or name in takes}
        count = len(arguments["completions"])  # before it can change the list
        try:
            returned = self.call(**given)
            if inspect.isawaitable(returned) or isinstance(returned, AsyncIterable):
                returned = asyncio.run(_awaited(returned, count))
            return self._checked(returned, count)
        except FunctionFailed:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and type(error) is not SystemExit:
                raise  # a signal has asked the trainer to end
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> FunctionFailed:
        """What is said of a call that raised: the error, and the line that it came from."""
        return FunctionFailed(f"{self.spec} raised {_described(error, self.file)}")

    def _checked(self, returned: Any, count: int) -> Values:
        """The values of what it returned, which may be lazy, and raise, or never end."""
        wanted = f"expected a list of {count}, one reward for each completion"
        try:
            if isinstance(returned, str | bytes | Mapping | Set):
                raise TypeError
            iterator = iter(returned)
        except TypeError:
            raise FunctionFailed(f"{self.spec} returned {shown(returned)}: {wanted}") from None
        values = list(islice(iterator, count + 1))
        if len(values) != count:
            number = len(values) if len(values) < count else f"more than {count}"
            raise FunctionFailed(f"{self.spec} returned {number} values: {wanted}")
        return [self._number(value) for value in values]

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        number = math.nan
        try:
            scalar = value.item() if hasattr(value, "item") else value  # of NumPy or PyTorch
            if isinstance(scalar, int | float):
                number = float(scalar)
        except Exception:  # of an array, or an integer too large
            pass
        if not math.isfinite(number):
            raise FunctionFailed(
                f"{self.spec} returned {shown(value)}: expected a finite number, or None where it "
                "does not apply"
            )
        return number


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
    if not callable(call) or inspect.isclass(call):
        raise ConfigError(f"rewards.functions: {spec} is a {type(call).__name__}, not a function")
    return UserFunction(spec, name, call, getattr(module, "__file__", None) or "")


def source_file(spec: str) -> Path | None:
    """The file whose code `file.py:name` or `package.module:name` runs, which is not imported;
    None where there is none, as for a built-in reward."""
    place = spec.rpartition(":")[0]
    if _is_file(place) or not place:
        return Path(place) if Path(place).is_file() else None
    package, *rest = place.split(".")
    found = next(filter(None, (finder.find_spec(package, None) for finder in sys.meta_path)), None)
    found = found or PathFinder.find_spec(package, [str(Path.cwd())])
    for name in rest:  # find_spec of importlib.util would import the packages
        if found is None or found.submodule_search_locations is None:
            return None
        found = PathFinder.find_spec(name, found.submodule_search_locations)
    return Path(found.origin) if found and found.origin and found.has_location else None


def _is_file(place: str) -> bool:
    return Path(place).suffix == ".py"


def _module(place: str, spec: str) -> ModuleType:
    path, is_file = Path(place), _is_file(place)
    if is_file and not path.is_file():
        where = "" if path.is_absolute() else f" (in {Path.cwd()})"
        raise ConfigError(f"rewards.functions: no such file: {path}{where}")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that its files hide no library
    try:
        return _import_file(path.resolve()) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        described = _described(error, str(path.resolve()))
        raise ConfigError(f"rewards.functions: {place} cannot be imported: {described}") from error


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


async def _awaited(returned: Any, count: int) -> Any:
    """What a coroutine returns; of an asynchronous iterable, at most one value too many."""
    if not isinstance(returned, AsyncIterable):
        return await returned
    values: list[Any] = []
    async for value in returned:
        values.append(value)
        if len(values) > count:
            break
    return values


def _described(error: BaseException, file: str) -> str:
    """Type and message of an error, and the line of `file` that it came from, else the last."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        message = str(error)
    except Exception:
        message = ""
    text = _shortened(f"{type(error).__name__}: {message}".rstrip(": "), LONGEST_MESSAGE)
    found = [frame for frame in frames if frame.filename == file]
    if not found and isinstance(error, SyntaxError):
        return text  # it says where
    found = found or [frame for frame in frames[-1:] if frame.filename != __file__]
    if not found:
        return text
    line = _shortened(found[-1].line or "", 120)
    return f"{text} ({Path(found[-1].filename).name}, line {found[-1].lineno}: {line})"


def _shortened(text: str, most: int) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return text if len(text) <= most else f"{text[:most]}…"
