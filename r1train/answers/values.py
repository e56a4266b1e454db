"""Values of expressions: exact where they are rational, else to many digits; always bounded.

Two expressions are the same if they have the same value wherever both were tried. With variables
they are tried at points drawn from the two texts themselves, which no answer can be made for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import comb, factorial, isqrt
from typing import Any

import mpmath

from r1train.answers.nodes import Expression, Number, Operation, Symbol

_MOST_BITS = 20_000
"""Of an exact integer: about 6000 digits."""
_LARGEST = 400
"""Power of ten of the largest value that is not exact."""
_DIGITS = (50, 150)
"""Decimal digits of the two evaluations: the second confirms what the first finds equal, with as
many more as the constants reach."""
_MOST_DIGITS = 1000
"""Of an evaluation: one that would need more is too large to compute."""
_POINTS = 5
_MOST_STEPS = 4
"""From values near 1 to the largest and to the least that variables are given."""
CONSTANTS = {"pi", "e", "i"}
Exact = tuple[Fraction, Fraction]
"""Real and imaginary part."""


class NoValueError(ArithmeticError):
    """Undefined, as 1/0 is, or too large to compute, as 9^9^9^9 is."""


def symbols(expression: Expression) -> set[str]:
    """Names of all symbols in it, constants included."""
    if isinstance(expression, Symbol):
        return {expression.name}
    if isinstance(expression, Operation):
        return set().union(*map(symbols, expression.arguments))
    return set()


def variables(expression: Expression) -> set[str]:
    return symbols(expression) - CONSTANTS


def same(left: Expression, right: Expression, *, up_to_factor: int | None = None) -> bool:
    """Whether both have the same value, for every value of their variables.

    `up_to_factor` also takes a constant factor between them: of any sign if 0, positive if 1.
    """
    names = sorted(variables(left) | variables(right))
    if not names and up_to_factor is None:
        return _same_constant(left, right)
    draw = random.Random(f"{left}{right}")
    ratios: list[Any] = []
    for trial in range(2 * _POINTS):
        point = {name: _draw(draw, trial) for name in names}
        try:
            pair = _pair(left, right, point)
        except NoValueError:
            continue
        if up_to_factor is None:
            if not _close(*pair):
                return False
            ratios.append(1)
        else:
            if not _nonzero(pair[0]) or not _nonzero(pair[1]):
                if _nonzero(pair[0]) != _nonzero(pair[1]):
                    return False
                continue
            ratios.append(_divide(*pair))
            if not _close(ratios[0], ratios[-1]):
                return False
            if up_to_factor == 1 and not _positive(ratios[0]):
                return False
        if len(ratios) == _POINTS:
            return up_to_factor is not None or _confirmed(left, right, names, draw)
    return False


def exact(expression: Expression, point: Mapping[str, Fraction] | None = None) -> Exact | None:
    """The value where it is rational (complex, too), else None; raises NoValueError."""
    if isinstance(expression, Number):
        return expression.value, Fraction(0)
    if isinstance(expression, Symbol):
        if expression.name == "i":
            return Fraction(0), Fraction(1)
        value = (point or {}).get(expression.name)
        return None if value is None else (value, Fraction(0))
    values = [exact(argument, point) for argument in expression.arguments]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return exact_operation(expression.name, known)


def approximate(expression: Expression, digits: int, point: Mapping[str, Fraction]) -> Any:
    """The value as an mpmath number of that many digits; raises NoValueError."""
    if digits > _MOST_DIGITS:
        raise NoValueError("too many digits")
    with mpmath.workdps(digits + 10):
        try:
            return _approximate(expression, point, mpmath)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
            raise NoValueError(str(error)) from None


def _same_constant(left: Expression, right: Expression) -> bool:
    try:
        exacts = exact(left), exact(right)
        if exacts[0] is not None and exacts[1] is not None:
            return exacts[0] == exacts[1]
        for digits in (_DIGITS[0], _DIGITS[1] + max(_reach(left), _reach(right))):
            if not _close(approximate(left, digits, {}), approximate(right, digits, {}), digits):
                return False
    except NoValueError:
        return False
    return True


def _pair(
    left: Expression, right: Expression, point: Mapping[str, Fraction], digits: int = _DIGITS[0]
) -> tuple[Any, Any]:
    exacts = exact(left, point), exact(right, point)
    if exacts[0] is not None and exacts[1] is not None:
        return exacts
    return approximate(left, digits, point), approximate(right, digits, point)


def _confirmed(
    left: Expression, right: Expression, names: Sequence[str], draw: random.Random
) -> bool:
    """To more digits, further out and nearer to 0, as far as the numbers of both reach: √x + 10^-60
    is not √x, and |x + 1000| is not x + 1000."""
    reach, confirmed = max(_reach(left), _reach(right)), False
    for scale in _scales(2 * reach + 2):  # x/1000 + 1000 is 0 at a million
        for sign in (0, 1):
            point = {name: scale * _draw(draw, sign) for name in names}
            try:
                pair = _pair(left, right, point, _DIGITS[1] + reach)
            except NoValueError:
                continue
            if not _close(*pair, _DIGITS[1] + reach):
                return False
            confirmed = True
    return confirmed


def _scales(reach: int) -> Iterator[Fraction]:
    """From 10^-reach to 10^reach, a hundredfold apart or, where that were many, evenly."""
    steps = min(_MOST_STEPS, reach // 2)
    for step in range(-steps, steps + 1):
        yield Fraction(10) ** (step * reach // steps)


def _reach(expression: Expression) -> int:
    """How many powers of ten the largest and the least of its constants are away from 1, those that
    are multiplied together."""
    parts = expression.arguments if isinstance(expression, Operation) else ()
    within = [_reach(part) for part in parts]
    is_sum = isinstance(expression, Operation) and expression.name == "+"
    together = max(within) if is_sum else sum(within)
    if variables(expression):
        return together
    try:
        known = exact(expression)
        size = abs(approximate(expression, 20, {}) if known is None else _complex(known))
    except NoValueError:
        return together
    return max(together, int(abs(mpmath.log10(size))) + 1 if size else 0)


def _draw(draw: random.Random, trial: int) -> Fraction:
    """From 0.1 to 5, by a denominator that no number in a text is a multiple of for all draws."""
    denominator = draw.randrange(10_000, 100_000)
    value = Fraction(draw.randrange(denominator // 10, 5 * denominator), denominator)
    sign = (1, -1, 1, draw.choice((-1, 1)))[trial % 4]  # all positive, all negative, mixed
    return sign * value


def _close(left: Any, right: Any, digits: int = _DIGITS[0]) -> bool:
    if isinstance(left, tuple) and isinstance(right, tuple):
        return left == right
    with mpmath.workdps(digits + 10):
        left, right = _complex(left), _complex(right)
        difference, size = abs(left - right), max(abs(left), abs(right))
        return bool(difference <= size * mpmath.mpf(10) ** (10 - digits))


def _complex(value: Any) -> Any:
    if isinstance(value, tuple):
        real, imaginary = value
        return mpmath.mpc(
            mpmath.mpf(real.numerator) / real.denominator,
            mpmath.mpf(imaginary.numerator) / imaginary.denominator,
        )
    return mpmath.mpc(value)


def _nonzero(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(value)
    return bool(abs(value) > 1e-30)


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, tuple) and isinstance(right, tuple):
        return _exact_operation("/", [left, right])
    with mpmath.workdps(_DIGITS[0] + 10):
        return _complex(left) / _complex(right)


def _positive(ratio: Any) -> bool:
    if isinstance(ratio, tuple):
        return bool(ratio[1] == 0 and ratio[0] > 0)
    return bool(ratio.real > 0 and abs(ratio.imag) < 1e-30)


def exact_operation(name: str, values: list[Exact]) -> Exact | None:
    """The operation's value where it is rational, else None; raises NoValueError."""
    result = _exact_operation(name, values)
    return None if result is None else _bounded(result)


def _exact_operation(name: str, values: list[Exact]) -> Exact | None:
    if name == "+":
        total = values[0]
        for value in values[1:]:
            total = _bounded((total[0] + value[0], total[1] + value[1]))
        return total
    if name == "-":
        return -values[0][0], -values[0][1]
    if name in ("*", "letters"):
        product = values[0]
        for value in values[1:]:
            product = _bounded(_multiply(product, value))
        return product
    if name == "/":
        (a, b), (c, d) = values
        size = c * c + d * d
        if not size:
            raise NoValueError("a division by zero")
        real, imaginary = _multiply((a, b), (c, -d))
        return real / size, imaginary / size
    if name == "^":
        return _exact_power(*values)
    if name == "apply" or any(value[1] for value in values):
        return None
    real_values = [value[0] for value in values]
    if name == "root":
        return _real(_exact_root(*real_values))
    if name == "abs":
        return _real(abs(real_values[0]))
    if name in ("floor", "ceil"):
        number = real_values[0]
        return _real(Fraction(number.__floor__() if name == "floor" else number.__ceil__()))
    if name in ("!", "binom"):
        if any(v.denominator != 1 or not 0 <= v <= 1000 for v in real_values):
            raise NoValueError(f"{name} of what is no small whole number")
        whole = [int(v) for v in real_values]
        return _real(Fraction(factorial(*whole) if name == "!" else comb(*whole)))
    return None


def _bounded(value: Exact) -> Exact:
    for part in value:
        if max(part.numerator.bit_length(), part.denominator.bit_length()) > _MOST_BITS:
            raise NoValueError("too large")
    return value


def _real(value: Fraction | None) -> Exact | None:
    return None if value is None else (value, Fraction(0))


def _multiply(left: Exact, right: Exact) -> Exact:
    (a, b), (c, d) = left, right
    return a * c - b * d, a * d + b * c


def _exact_power(base: Exact, exponent: Exact) -> Exact | None:
    power = exponent[0]
    if exponent[1]:
        return None
    if power.denominator != 1:
        if base[1] or base[0] < 0 or power.denominator > 100:
            return None
        root = _exact_root(Fraction(power.denominator), base[0])
        return None if root is None else _exact_power((root, base[1]), _whole(power.numerator))
    if not any(base):
        if power <= 0:
            raise NoValueError("a power of zero")
        return base
    if base in ((1, 0), (-1, 0)):
        return base if power % 2 else (Fraction(1), Fraction(0))
    bits = max(part.bit_length() for x in base for part in (x.numerator, x.denominator))
    if abs(power) * bits > _MOST_BITS:
        raise NoValueError("too large")
    if not base[1]:
        return base[0] ** int(power), Fraction(0)
    result, square = (Fraction(1), Fraction(0)), base
    for digit in reversed(bin(abs(int(power)))[2:]):
        if digit == "1":
            result = _multiply(result, square)
        square = _multiply(square, square)
    return result if power > 0 else _exact_operation("/", [_whole(1), result])


def _whole(value: int) -> Exact:
    return Fraction(value), Fraction(0)


def _exact_root(degree: Fraction, radicand: Fraction) -> Fraction | None:
    """The real root where it is rational; of a negative number where the degree is odd."""
    if degree.denominator != 1 or not 2 <= degree <= 100:
        raise NoValueError("a root of no whole degree")
    n = int(degree)
    if radicand < 0:
        positive = _exact_root(degree, -radicand) if n % 2 else None
        return None if positive is None else -positive
    upper, lower = (_whole_root(n, part) for part in (radicand.numerator, radicand.denominator))
    return None if upper is None or lower is None else Fraction(upper, lower)


def _whole_root(n: int, value: int) -> int | None:
    if n == 2:
        root = isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // n + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**n <= value else (low, middle - 1)
        root = low
    return root if root**n == value else None


def _approximate(expression: Expression, point: Mapping[str, Fraction], mp: Any) -> Any:
    known = exact(expression, point)
    if known is not None:
        value = _complex(known)
        return value.real if value.imag == 0 else value
    if isinstance(expression, Symbol):
        if expression.name not in ("pi", "e"):
            raise NoValueError(f"{expression.name} has no value")
        return +mp.pi if expression.name == "pi" else +mp.e
    assert isinstance(expression, Operation)
    values = [_approximate(argument, point, mp) for argument in expression.arguments]
    value = _operation(expression.name, values, mp)
    size = abs(value)
    if not mp.isfinite(size) or (size and abs(mp.log10(size)) > _LARGEST):
        raise NoValueError("too large")
    return value


def _operation(name: str, values: list[Any], mp: Any) -> Any:
    first = values[0]
    if name == "+":
        return mp.fsum(values)
    if name in ("*", "letters"):
        return mp.fprod(values)
    if name == "-":
        return -first
    if name == "/":
        return first / values[1]
    if name == "^":
        if first == 0:
            raise NoValueError("a power of zero")
        if abs(values[1] * mp.log(first)) > 3 * _LARGEST:
            raise NoValueError("too large")
        return first ** values[1]
    if name == "root":
        degree, radicand = values
        odd = degree == int(degree.real) and int(degree.real) % 2 == 1
        if odd and mp.im(radicand) == 0 and mp.re(radicand) < 0:
            return -((-radicand) ** (1 / degree))
        return radicand ** (1 / degree)
    if name == "log":
        return mp.log(first) / mp.log(values[1] if len(values) > 1 else 10)
    if name == "exp" and abs(first) > 3 * _LARGEST:
        raise NoValueError("too large")
    if (
        name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
        and abs(first) > 1000
    ):
        raise NoValueError("too large an argument")
    if name == "apply":  # of which nothing is known: drawn from its name's and argument's values
        drawn = _draw(random.Random("".join(_rounded(value, mp) for value in values)), 0)
        return mp.mpf(drawn.numerator) / drawn.denominator
    function = _FUNCTIONS.get(name)
    if function is None:
        raise NoValueError(f"{name} of what is not rational")
    return getattr(mp, function)(first)


def _rounded(value: Any, mp: Any) -> str:
    parts = (mp.re(value), mp.im(value))
    return ",".join("0" if abs(part) < 1e-30 else mp.nstr(part, 30) for part in parts)


_FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "exp": "exp", "ln": "ln", "abs": "fabs",
    "floor": "floor", "ceil": "ceil",
}  # fmt: skip
