"""What a piece of mathematics is read as: expressions, and the forms that an answer may have."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from r1train.answers.units import Unit


@dataclass(frozen=True)
class Number:
    value: Fraction
    place: int | None = None
    """Power of ten of the last digit where it was written as a decimal, -2 for 3.14; else None."""


@dataclass(frozen=True)
class Symbol:
    name: str
    """A variable, or one of the constants "pi", "e" and "i"."""


@dataclass(frozen=True)
class Operation:
    name: str
    """"+", "*", "/", "^", "-" (of one argument), "root" (degree, radicand),
    "letters" (a product of them), "apply" (a symbol, its argument) or a function's name."""
    arguments: tuple[Expression, ...]


Expression = Number | Symbol | Operation


@dataclass(frozen=True)
class Infinity:
    sign: int


@dataclass(frozen=True)
class Quantity:
    """One value: `name = expression unit`."""

    value: Expression | Infinity
    unit: Unit | None = None
    percent: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Relation:
    """`left` related to `right`: by = ≠ < ≤, the last two also for what was written > and ≥."""

    kind: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Sequence:
    """Items in order. Two in round or square brackets are a point or an interval."""

    items: tuple[Form, ...]
    brackets: str = ""
    name: str | None = None


@dataclass(frozen=True)
class Alternatives:
    """Items in any order: a set, a union, `2 or 3`, `±2`."""

    items: tuple[Form, ...]
    name: str | None = None
    braces: bool = False
    """Whether it was written in braces: a set, which stays one item of the list that it is in."""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Form, ...], ...]


Form = Quantity | Relation | Sequence | Alternatives | Matrix
