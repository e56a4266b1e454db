"""Frozen dataclasses that check what they are given: by TOML, the command line or Python.

A `Section` is a dataclass whose fields are coerced and checked against their annotations when it is
built. Every refusal is a `ConfigError` that names the key, the value and what is accepted.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A setting the user can correct; the command line prints it as one line and exits with 2."""


class RunError(RuntimeError):
    """Why a run cannot go on, in one line for the command line."""


@dataclass(frozen=True)
class Bound:
    """Accepted range of a number; `exclusive` takes `low` itself out of the range."""

    low: float
    high: float
    exclusive: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.exclusive else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in self.ends())
        return f"{'>' if self.exclusive else '>='} {low} and <= {high}"

    def ends(self) -> tuple[float, float]:
        return self.low, self.high


Count = Annotated[int, Bound(1, 2**31 - 1)]
CountOrZero = Annotated[int, Bound(0, 2**31 - 1)]
Size = Annotated[int, Bound(1, 10_000_000)]
"""Of a set of problems, which is kept in memory."""
Workers = Annotated[int, Bound(1, 1024)]
Seed = Annotated[int, Bound(0, 2**63 - 1)]
Positive = Annotated[float, Bound(0.0, 1e30, exclusive=True)]
NonNegative = Annotated[float, Bound(0.0, 1e30)]
Seconds = Annotated[float, Bound(0.0, 86400.0, exclusive=True)]
Decay = Annotated[float, Bound(0.0, 0.999999)]
Share = Annotated[float, Bound(0.0, 1.0)]


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` with the closest known key, or all of them where none is close."""
    close = get_close_matches(key, known := sorted(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def shown(value: Any) -> str:
    """`repr` of a value, no longer than a line: what a message shows of it."""
    if isinstance(value, int) and value.bit_length() > 400:
        near = round(math.log10(abs(value)))  # of its digits: exact, or one too few
        return f"an integer of {near + (abs(value) >= 10**near)} digits"
    try:
        text = repr(value)
    except ValueError:  # of a long integer somewhere inside
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:80]}… ({len(text)} characters)"


class Section:
    """Base of the configuration dataclasses; `section="grpo"` is the name errors are told with."""

    section: ClassVar[str]
    exclusive: ClassVar[tuple[str, ...]] = ()
    """Optional fields of which at most one is given."""

    def __init_subclass__(cls, section: str = "") -> None:
        cls.section = section

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = accept(getattr(self, name), hint, self.key(name))
            object.__setattr__(self, name, value)  # frozen: this is the one place that may write
        given = [name for name in self.exclusive if getattr(self, name) is not None]
        for name in given[1:]:
            self.require(False, name, f"{self.key(given[0])} is given too: give one of the two")
        self.check()

    def check(self) -> None:
        """Rules between fields; the fields themselves are already coerced and checked."""

    @classmethod
    def key(cls, name: str) -> str:
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def coerce(cls, value: Any, key: str) -> Any:
        """An instance from what a file has at `key`: a table."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {shown(value)}: expected a table")
        return build(cls, value)

    def require(self, rule: bool, name: str, reason: str) -> None:
        if not rule:
            raise ConfigError(f"{self.key(name)} = {shown(getattr(self, name))}: {reason}")


def own_first(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass, those that it declares itself before those it has from another."""
    return sorted(dataclasses.fields(cls), key=lambda f: f.name not in cls.__annotations__)


def field_docs(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass as its documentation, in one line."""
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    return {name: text for base in bases for name, text in _own_docs(base).items()}


def _own_docs(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, after in itertools.pairwise([*tree.body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value.value if _is_text(after) else ""  # type: ignore[attr-defined]
            docs[statement.target.id] = " ".join(text.split())
    return docs


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of the section `cls` from a mapping; an unknown key is an error."""
    known = list(_hints(cls))
    for key in values:
        if key not in known:
            where = f"section [{cls.section}]" if cls.section else "the top level"  # type: ignore[attr-defined]
            raise ConfigError(f"unknown key '{key}' in {where}: {nearest(key, known)}")
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f"section [{cls.section}]: {error}") from None  # type: ignore[attr-defined]


def laid_over(section: Section, values: Mapping[str, Any]) -> Any:
    """The section with other values, key by key, and so the tables within it. Of `exclusive` fields
    the one that is given takes the place of the other."""
    found = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key, value in values.items():
        before = found.get(key)
        if isinstance(before, Section) and isinstance(value, Mapping):
            value = laid_over(before, value)
        found[key] = value
    if not section.exclusive or values.keys().isdisjoint(section.exclusive):
        return build(type(section), found)
    unset = {name: None for name in section.exclusive if name not in values}
    return build(type(section), found | unset)


def accept(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint` asks for, or a ConfigError that names `key`, value and type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = accept(value, args[0], key)
        if number not in args[1]:
            raise ConfigError(f"{key} = {shown(value)}: expected a value {args[1]}")
        return number
    if origin in (Union, types.UnionType):  # X | None is the only union in use
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None or value == "none" else accept(value, inner, key)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{key} = {shown(value)}: expected one of {', '.join(map(repr, args))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} = {shown(value)}: expected a list")
        return tuple(accept(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {shown(value)}: expected a table")
        return dict(value)
    if isinstance(hint, type) and issubclass(hint, Section):
        return value if isinstance(value, hint) else hint.coerce(value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{key} = {shown(value)}: expected a number below 1e308") from None
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        raise ConfigError(f"{key} = {shown(value)}: expected {names[hint]}")
    if hint is str and ("\0" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value)):
        reason = "expected text without NUL, in valid Unicode"
        raise ConfigError(f"{key} = {shown(value)}: {reason}")
    return value
