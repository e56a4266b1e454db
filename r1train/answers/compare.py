"""Whether what an answer was read as is what its reference was read as."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from fractions import Fraction
from typing import TypeVar

from r1train.answers.nodes import (
    Alternatives,
    Expression,
    Form,
    Infinity,
    Matrix,
    Number,
    Operation,
    Quantity,
    Relation,
    Sequence,
    Symbol,
)
from r1train.answers.units import Unit, agree
from r1train.answers.values import (
    Exact,
    NoValueError,
    approximate,
    exact,
    exact_operation,
    same,
    symbols,
    variables,
)

_WIDEST = Fraction(1, 100)
"""The largest relative tolerance, however few digits a reference has."""
_MOST_ITEMS = 64
"""Of a set whose items are not all written alike."""
_MOST_COMPARISONS = 2080
"""Between the items of two sets."""
T = TypeVar("T", bound=Hashable)


def equal(answer: Form, reference: Form) -> bool:
    """Whether the answer is the reference, by the rules of its form."""
    if not _named_alike(answer, reference):
        return _same_relation(answer, reference)  # x = y is y = x
    if isinstance(reference, Alternatives):
        return _same_alternatives(answer, reference)
    if isinstance(answer, Alternatives):
        return _is_one(answer) and equal(answer.items[0], reference)
    if isinstance(reference, Matrix) or isinstance(answer, Matrix):
        rows = _rows(answer), _rows(reference)
        return rows[0] is not None and rows[1] is not None and _same_rows(rows[0], rows[1])
    if isinstance(reference, Sequence):
        return isinstance(answer, Sequence) and _same_sequence(answer, reference)
    if isinstance(reference, Relation) or isinstance(answer, Relation):
        return _same_relation(answer, reference)
    return isinstance(answer, Quantity) and _same_quantity(answer, reference)


def matched(answers: Items[T], references: Items[T], agrees: Callable[[T, T], bool]) -> bool:
    """Whether they can be paired off, each answer with a reference that it agrees with.

    Of many items, all but a few must be the same as they are read.
    """
    if len(answers) != len(references):
        return False
    places: dict[T, list[int]] = {}
    for place, reference in enumerate(references):
        places.setdefault(reference, []).append(place)
    partner: dict[int, int] = {}
    left = []
    for place, answer in enumerate(answers):
        if same_places := places.get(answer):
            partner[same_places.pop()] = place
        else:
            left.append(place)
    if len(references) > _MOST_ITEMS and left:
        return False
    known: dict[tuple[int, int], bool] = {}

    def pair(answer: int, reference: int) -> bool:
        if (answer, reference) not in known:
            if len(known) == _MOST_COMPARISONS:
                return False
            known[answer, reference] = agrees(answers[answer], references[reference])
        return known[answer, reference]

    def find(answer: int, tried: set[int]) -> bool:
        for reference in sorted(range(len(references)), key=lambda place: place in partner):
            if reference not in tried and pair(answer, reference):
                tried.add(reference)
                if reference not in partner or find(partner[reference], tried):
                    partner[reference] = answer
                    return True
        return False

    return all(find(answer, set()) for answer in left)


def is_arithmetic(form: Form) -> bool:
    """Whether it is a sum or a repeated quotient of plain numbers: a date, a score, a telephone."""
    if not isinstance(form, Quantity) or not isinstance(form.value, Operation):
        return False
    name, arguments = form.value.name, form.value.arguments
    if name == "/":
        first = arguments[0]
        return isinstance(first, Operation) and first.name in "/-" and not symbols(form.value)
    return name == "+" and not any(map(symbols, arguments)) and "sum" in undone(form.value)


def has_letters(form: Form) -> bool:
    """Whether letters side by side were read as a product in it."""
    return any(_has_letters(expression) for expression in _expressions(form))


def undone(expression: Expression) -> set[str]:
    """Kinds of arithmetic on plain numbers that the expression leaves to its reader.

    A fraction, a power, a root and a power of ten's multiple are numbers as they are written; a
    sum, a product, a function's value and a quotient that comes out whole are not.
    """
    return _survey(expression)[1]


def _survey(expression: Expression) -> tuple[Exact | None, set[str]]:
    """The value where it is a plain number, and what is left undone in it."""
    if not isinstance(expression, Operation):
        return exact(expression), set()
    name, arguments = expression.name, expression.arguments
    surveys = [_survey(argument) for argument in arguments]
    values = [value for value, _ in surveys]
    found = set[str]().union(*(kinds for _, kinds in surveys))
    plain = [value for value in values if value is not None]
    value: Exact | None = None
    if len(plain) == len(values):
        try:
            value = exact_operation(name, plain)
        except NoValueError:
            found.add("value")
    if name == "+":
        if max(sum(not v[1] for v in plain), sum(bool(v[1]) for v in plain)) > 1:
            found.add("sum")
    elif name == "*":
        factors = [v for a, v in zip(arguments, values, strict=True) if v and a != Symbol("i")]
        scaled = len(arguments) == 2 and _is_power_of_ten(arguments[1])
        if len(factors) > 1 and not scaled:
            found.add("product")
    elif name == "/":
        if value is not None:
            whole = all(part.denominator == 1 for part in value) and values[1] != (1, 0)
            if whole or any(part.denominator != 1 for v in plain for part in v):
                found.add("quotient")
    elif name == "^":
        base = values[0]
        if base is not None and (base[1] or _is_sum(arguments[0])):
            found.add("power")
    elif name in ("floor", "ceil"):
        found.add(name)  # with variables, too: no number of points tells a step from its absence
    elif name not in ("-", "root", "letters", "exp") and not variables(arguments[0]):
        found.add("function")  # of a constant: sin(π/2) is 1 left undone, as 5! is 120
    return value, found


# Forms.


def _named_alike(answer: Form, reference: Form) -> bool:
    names = getattr(answer, "name", None), getattr(reference, "name", None)
    return None in names or names[0] == names[1]


def _same_alternatives(answer: Form, reference: Alternatives) -> bool:
    if isinstance(answer, Alternatives) or (isinstance(answer, Sequence) and not answer.brackets):
        return matched(answer.items, reference.items, equal)
    return _is_one(reference) and equal(answer, reference.items[0])


def _is_one(form: Alternatives) -> bool:
    """Whether it stands for its one item, which no set of a set does."""
    return len(form.items) == 1 and not isinstance(form.items[0], Alternatives)


def _same_sequence(answer: Sequence, reference: Sequence) -> bool:
    if len(answer.items) != len(reference.items):
        return False
    brackets = answer.brackets, reference.brackets
    if len(reference.items) == 2 and brackets[1] and brackets[0] != brackets[1]:
        return False  # (1, 2] is another interval than (1, 2)
    names = [[getattr(item, "name", None) for item in form.items] for form in (answer, reference)]
    if None not in names[0] and None not in names[1] and len(set(names[1])) == len(names[1]):
        return matched(answer.items, reference.items, equal)  # y = 2, x = 1
    return all(map(equal, answer.items, reference.items))


def _rows(form: Form) -> tuple[tuple[Form, ...], ...] | None:
    if isinstance(form, Matrix):
        return form.rows
    if isinstance(form, Sequence) and all(isinstance(item, Sequence) for item in form.items):
        return tuple(item.items for item in form.items if isinstance(item, Sequence))
    return None


def _same_rows(
    answer: tuple[tuple[Form, ...], ...], reference: tuple[tuple[Form, ...], ...]
) -> bool:
    shapes = [[len(row) for row in rows] for rows in (answer, reference)]
    pairs = zip(answer, reference, strict=False)
    return shapes[0] == shapes[1] and all(all(map(equal, *pair)) for pair in pairs)


def _same_relation(answer: Form, reference: Form) -> bool:
    relations = [_as_relation(form) for form in (answer, reference)]
    if relations[0] is None or relations[1] is None or relations[0].kind != relations[1].kind:
        return False
    ordered = relations[0].kind in ("<", "≤")
    differences = [
        Operation("+", (relation.left, Operation("-", (relation.right,))))
        for relation in relations
        if relation is not None
    ]
    return same(differences[0], differences[1], up_to_factor=1 if ordered else 0)


def _as_relation(form: Form) -> Relation | None:
    """y = 2x + 1 is a value with a name, but also an equation."""
    if isinstance(form, Relation):
        return form
    if isinstance(form, Quantity) and form.name and not isinstance(form.value, Infinity):
        return Relation("=", Symbol(form.name), form.value) if len(form.name) == 1 else None
    return None


# Values.


def _same_quantity(answer: Quantity, reference: Quantity) -> bool:
    units = answer.unit or answer.percent, reference.unit or reference.percent
    if all(units) and not _same_unit(answer.unit, reference.unit):
        return False
    if answer.unit and not reference.unit and not answer.unit.ignorable:
        return False
    if isinstance(reference.value, Infinity) or isinstance(answer.value, Infinity):
        return answer.value == reference.value
    if variables(answer.value) != variables(reference.value):
        return False
    if undone(answer.value) - undone(reference.value):
        return False
    found, wanted = answer.value, reference.value
    hundred = Number(Fraction(100))
    if answer.percent == reference.percent:
        return _same_value(found, wanted)
    if answer.percent:
        return _same_value(Operation("/", (found, hundred)), wanted) or (
            _is_at_least_one(found) and _same_value(found, wanted)
        )
    return _same_value(Operation("*", (found, hundred)), wanted) or (
        _is_at_least_one(found) and _same_value(found, wanted)
    )


def _same_unit(answer: Unit | None, reference: Unit | None) -> bool:
    if answer is None or reference is None:
        return answer is reference
    return agree(answer, reference)


def _is_at_least_one(expression: Expression) -> bool:
    try:
        value = exact(expression)
    except NoValueError:
        return False
    return value is not None and not value[1] and abs(value[0]) >= 1


def _same_value(answer: Expression, reference: Expression) -> bool:
    tolerance = _tolerance(reference)
    if tolerance is None:
        return not _is_roundabout(answer, reference) and same(answer, reference)
    try:
        wanted, found = exact(reference), exact(answer)
        assert wanted is not None
        if found is None:
            number = approximate(answer, 50, {})
            if number.imag:
                return False
            found = Fraction(str(number.real)), Fraction(0)
    except (NoValueError, ValueError):
        return False
    return not found[1] and abs(found[0] - wanted[0]) <= min(tolerance, _WIDEST * abs(found[0]))


def _is_roundabout(answer: Expression, reference: Expression) -> bool:
    """Whether roots or constants that cancel out are left to the reader: 5π/π is 5."""
    if variables(answer):
        return False
    try:
        wanted = exact(reference)
        return wanted is not None and not wanted[1] and exact(answer) is None  # but √-4 is 2i
    except NoValueError:
        return False


def _tolerance(expression: Expression) -> Fraction | None:
    """Half a unit of the last digit of a decimal of at least two digits; None: be exact."""
    if isinstance(expression, Operation) and expression.name == "-":
        return _tolerance(expression.arguments[0])
    if (
        isinstance(expression, Operation)
        and expression.name == "*"
        and len(expression.arguments) == 2
    ):
        coefficient, power = expression.arguments
        if _is_power_of_ten(power):
            inner, scale = _tolerance(coefficient), exact(power)
            return None if inner is None or scale is None else inner * scale[0]
    if not isinstance(expression, Number) or expression.place is None:
        return None
    unit = Fraction(10) ** expression.place
    return unit / 2 if abs(expression.value) >= 10 * unit else None


def _is_power_of_ten(expression: Expression) -> bool:
    if isinstance(expression, Operation) and expression.name == "^":
        base, exponent = expression.arguments
        return base == Number(Fraction(10)) and not symbols(exponent)
    return False


def _is_sum(expression: Expression) -> bool:
    return isinstance(expression, Operation) and expression.name == "+"


def _has_letters(expression: Expression) -> bool:
    if not isinstance(expression, Operation):
        return False
    return expression.name == "letters" or any(map(_has_letters, expression.arguments))


def _expressions(form: Form) -> list[Expression]:
    if isinstance(form, Quantity):
        return [] if isinstance(form.value, Infinity) else [form.value]
    if isinstance(form, Relation):
        return [form.left, form.right]
    if isinstance(form, Matrix):
        return [e for row in form.rows for item in row for e in _expressions(item)]
    return [e for item in form.items for e in _expressions(item)]
