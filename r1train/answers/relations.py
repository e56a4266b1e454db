"""What equations and inequalities say: a value, an interval, or a relation."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from r1train.answers.nodes import (
    Expression,
    Form,
    Infinity,
    Quantity,
    Relation,
    Sequence,
    Symbol,
)
from r1train.answers.tokens import Unreadable
from r1train.answers.values import NoValueError, exact, same, symbols


def chain(sides: list[Form], kinds: list[str], name: str | None) -> Form:
    """What `a = b = c`, `a < x < b` and `x + y = 2` say."""
    values: list[Expression] = []
    for side in sides:
        if not isinstance(side, Quantity) or isinstance(side.value, Infinity):
            raise Unreadable("a relation of what has no value")
        values.append(side.value)
    first, last = sides[0], sides[-1]
    assert isinstance(first, Quantity)
    assert isinstance(last, Quantity)
    if set(kinds) == {"="}:
        if len(sides) == 2 and not name:
            if isinstance(values[1], Symbol) and not symbols(values[0]):
                return replace(first, name=values[1].name)
            if symbols(values[0]) | symbols(values[1]):
                return Relation("=", values[0], values[1])
        if not all(same(value, values[-1]) for value in values[:-1]):
            raise Unreadable("an equation that does not hold")
        return replace(last, name=name)
    if name or len(kinds) > 2:
        raise Unreadable("a chain of relations")
    if kinds[0] in "><" or kinds[0] in "≥≤":
        if kinds[0] in ">≥":
            values.reverse()
            kinds = [{">": "<", "≥": "≤"}.get(kind, "") for kind in reversed(kinds)]
        if not all(kind in ("<", "≤") for kind in kinds):
            raise Unreadable("a chain of different relations")
        interval = _interval(values, kinds)
        if interval is not None:
            return interval
    if len(kinds) > 1:
        raise Unreadable("a chain of relations")
    return Relation(kinds[0], values[0], values[1])


def _interval(values: list[Expression], kinds: list[str]) -> Sequence | None:
    """The interval that the inequality of one variable is: 1 < x ≤ 2 is (1, 2]."""
    middle = next((i for i, v in enumerate(values) if isinstance(v, Symbol)), None)
    others = [value for i, value in enumerate(values) if i != middle]
    if middle is None or any(map(symbols, others)) or (len(values) == 3 and middle != 1):
        return None
    variable = values[middle]
    assert isinstance(variable, Symbol)
    low: Form = Quantity(values[middle - 1] if middle else Infinity(-1))
    high: Form = Quantity(values[middle + 1] if middle + 1 < len(values) else Infinity(1))
    opening = "(" if not middle or kinds[middle - 1] == "<" else "["
    closing = ")" if middle == len(kinds) or kinds[middle] == "<" else "]"
    return Sequence((low, high), opening + closing, variable.name)


def is_inequality(form: Form) -> bool:
    """Whether it is one, or the interval of one."""
    if isinstance(form, Sequence):
        return form.name is not None and len(form.items) == 2 and len(form.brackets) == 2
    return isinstance(form, Relation) and form.kind != "="


def intersection(forms: list[Form]) -> Sequence:
    """The interval that `x > 1 and x < 2` is; raises Unreadable for all but such a pair."""
    if len(forms) != 2 or not all(isinstance(f, Sequence) and is_inequality(f) for f in forms):
        raise Unreadable("inequalities that hold at once")
    pair = [form for form in forms if isinstance(form, Sequence)]
    above = next((f for f in pair if _value(f.items[1]) == Infinity(1)), None)
    below = next((f for f in pair if _value(f.items[0]) == Infinity(-1)), None)
    if above is None or below is None or pair[0].name != pair[1].name:
        raise Unreadable("inequalities that hold at once")
    low, high = _real(above.items[0]), _real(below.items[1])
    if low is None or high is None or low >= high:
        raise Unreadable("inequalities that never hold at once")
    brackets = above.brackets[0] + below.brackets[1]
    return Sequence((above.items[0], below.items[1]), brackets, above.name)


def _real(form: Form) -> Fraction | None:
    value = _value(form)
    try:
        known = None if value is None or isinstance(value, Infinity) else exact(value)
    except NoValueError:
        return None
    return None if known is None or known[1] else known[0]


def _value(form: Form) -> Expression | Infinity | None:
    return form.value if isinstance(form, Quantity) else None
