"""Expressions: sums, products, powers, roots and functions, as LaTeX and Python write them."""

from __future__ import annotations

from fractions import Fraction
from typing import NoReturn

from r1train.answers.nodes import Expression, Number, Operation, Symbol
from r1train.answers.tokens import FUNCTIONS, Token, Unreadable
from r1train.answers.units import Unit, is_common, is_known, read_unit
from r1train.answers.values import symbols

_DEEPEST = 40
COMPARED = frozenset("=≠<≤>≥")
_OF_UNITS = {"word", "name", "unit", *"°/^-{}()*"}
_RENAMED = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}


class ExpressionParser:
    """Reads expressions, and the units behind them, from tokens.

    `applied` says that f(…), g(…), h(…) and capitals before brackets are functions, no products.
    """

    def __init__(self, tokens: list[Token], *, applied: bool) -> None:
        self.tokens, self.position, self.depth = tokens, 0, 0
        self.sign = 1  # of ±, which is read twice
        self.signs = 0  # how many were read
        self.bars = 0  # |…| that are open
        self.functions = 0  # whose argument is being read
        self.applied = applied

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail()

    # Tokens.

    def peek(self, ahead: int = 0) -> Token:
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else Token("end", "", False)

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, *kinds: str) -> bool:
        if self.peek().kind in kinds:
            self.position += 1
            return True
        return False

    def accept_name(self, name: str) -> bool:
        if self.peek().kind == "name" and self.peek().text == name:
            self.position += 1
            return True
        return False

    def expect(self, kind: str) -> None:
        if not self.accept(kind):
            self.fail()

    def fail(self) -> NoReturn:
        raise Unreadable(f"unexpected {self.peek().text!r}")

    def subscript(self) -> str:
        if not self.accept("{"):
            return self.take().text
        text = ""
        while not self.accept("}"):
            if self.peek().kind == "end":
                self.fail()
            text += self.take().text
        return text

    # Expressions.

    def expression(self) -> Expression:
        self.deeper()
        terms = [self.term(self.leading_sign())]
        while self.peek().kind in ("+", "-", "±", "∓"):
            terms.append(self.term(self.one_sign()))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Operation("+", tuple(terms))

    def leading_sign(self) -> int:
        return self.one_sign() if self.peek().kind in ("+", "-", "±", "∓") else 1

    def one_sign(self) -> int:
        kind = self.take().kind
        self.signs += kind in "±∓"
        return {"+": 1, "-": -1, "±": self.sign, "∓": -self.sign}[kind]

    def term(self, sign: int) -> Expression:
        value = self.factor()
        while True:
            if self.accept("*"):
                value = _product(value, self.factor(self.leading_sign()), "*")
            elif not self.is_per_unit(value) and self.accept("/"):
                value = Operation("/", (value, self.factor(self.leading_sign())))
            elif self.juxtaposed(value):
                named = isinstance(value, Symbol) and self.peek().kind in ("name", "(")
                following = self.factor()
                letters = named and isinstance(following, Symbol | Number)  # xy and f(x)
                value = _product(value, following, "letters" if letters else "*")
            else:
                return Operation("-", (value,)) if sign < 0 else value

    def juxtaposed(self, before: Expression) -> bool:
        """Whether a factor follows without a sign. Two numbers never do."""
        token = self.peek()
        if token.kind == "|":
            return self.bars == 0
        if token.kind == "command":
            return token.text in ("frac", "binom", "lfloor", "lceil")
        if token.kind == "name":
            joining = token.text in ("and", "or")
            return not joining and not (token.spaced and self.names_a_unit(before))
        if token.kind == "word":
            return not token.spaced and _is_product(token.text) and not is_common(token.text)
        return token.kind in ("(", "{")

    def is_per_unit(self, before: Expression) -> bool:
        """Whether a stroke belongs to a unit: $18/day."""
        word = self.peek(1)
        return word.kind == "word" and is_known(word.text) and not symbols(before)

    def names_a_unit(self, before: Expression) -> bool:
        """Whether a letter after a space and a number is a unit: 5 m, but 5 x and x m are not."""
        if symbols(before) or not is_known(self.peek().text):
            return False
        start = self.position
        try:
            self.unit()
        except Unreadable:
            return False
        finally:
            self.position = start
        return True

    def factor(self, sign: int = 1) -> Expression:
        base = self.atom()
        if self.functions and self.accept("°"):
            degree = Operation("/", (Symbol("pi"), Number(Fraction(180))))
            base = Operation("*", (base, degree))
        if self.accept("!"):
            base = Operation("!", (base,))
        if self.accept("^"):
            exponent = self.exponent()
            if isinstance(base, Symbol) and self.is_function(base.name, self.peek()):
                self.fail()  # f^{-1}(x)
            base = _power(base, exponent)
        return Operation("-", (base,)) if sign < 0 else base

    def is_function(self, name: str, following: Token) -> bool:
        """Whether the letter before a bracket is a function's name: O(n^2) and f(x)."""
        letter = name.partition("_")[0]
        named = len(letter) == 1 and (letter.isupper() or letter in "fgh")
        return self.applied and named and following.kind == "("  # also of \left(

    def exponent(self) -> Expression:
        if self.accept("{"):
            value = self.expression()
            self.expect("}")
            return value
        return self.factor(self.leading_sign())

    def argument(self) -> Expression:
        """Of a LaTeX command: a group, or one thing."""
        if self.accept("{"):
            value = self.expression()
            self.expect("}")
            return value
        return self.atom()

    def atom(self) -> Expression:
        self.deeper()
        value = self._atom()
        self.depth -= 1
        return value

    def _atom(self) -> Expression:
        token = self.take()
        if token.kind == "number" and token.value is not None:
            return self.mixed(token)
        if token.kind == "name":
            return self.named(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.kind in ("(", "{", "["):
            value = self.expression()
            self.expect({"(": ")", "{": "}", "[": "]"}[token.kind])
            return value
        if token.kind == "|":
            self.bars += 1
            value = self.expression()
            self.expect("|")
            self.bars -= 1
            return Operation("abs", (value,))
        if token.kind == "word" and _is_product(token.text):
            return Operation("letters", tuple(map(Symbol, token.text)))
        self.position -= 1
        self.fail()

    def mixed(self, token: Token) -> Expression:
        """A number, or one and a half: `1 1/2` and `1\\frac{1}{2}`."""
        assert token.value is not None
        whole, start = token.value, self.position
        if not token.text.isdigit():
            return whole
        upper, lower = None, None
        if self.peek().kind == "command" and self.peek().text == "frac":
            self.position += 1
            upper, lower = self.argument(), self.argument()
        elif self.peek().kind == "number" and self.peek().spaced and self.peek(1).kind == "/":
            upper = self.take().value
            self.position += 1
            lower = self.take().value
        if isinstance(upper, Number) and isinstance(lower, Number) and whole.value:
            if 0 < upper.value < lower.value and upper.place is lower.place is None:
                return Number(whole.value + upper.value / lower.value)
            self.fail()
        self.position = start
        return whole

    def named(self, name: str) -> Expression:
        if name in FUNCTIONS:
            return self.function(_RENAMED.get(name, name))
        if name in ("sqrt", "cbrt"):
            degree: Expression = Number(Fraction(2 if name == "sqrt" else 3))
            if self.accept("["):
                degree = self.expression()
                self.expect("]")
            return Operation("root", (degree, self.argument()))
        if name in ("and", "or", "inf", "infinity", "infty", "oo"):
            self.position -= 1
            self.fail()
        if self.accept("_"):
            name += "_" + self.subscript()
        if self.peek().kind == "number" and not self.peek().spaced:
            self.fail()  # x2 and B12 are no products
        if self.is_function(name, self.peek()):
            return Operation("apply", (Symbol(name), self.atom()))
        return Symbol(name)

    def function(self, name: str) -> Expression:
        base: Expression | None = None
        power: Expression | None = None
        if name == "log" and self.accept("_"):
            base = self.argument()
        if self.accept("^"):
            power = self.exponent()
            if isinstance(power, Operation) and power.name == "-":
                if name not in ("sin", "cos", "tan") or power.arguments != (Number(Fraction(1)),):
                    self.fail()
                name, power = f"arc{name}", None
        self.functions += 1
        if self.peek().kind in ("(", "{", "["):
            inner = self.atom()
        else:
            inner = self.factor()
            while self.juxtaposed(inner) and self.peek().kind not in ("(", "{"):
                if self.peek().kind == "name" and self.peek().text in FUNCTIONS:
                    break
                inner = Operation("*", (inner, self.factor()))
        self.functions -= 1
        arguments = (inner,) if base is None else (inner, base)
        value = Operation(name, arguments)
        return value if power is None else Operation("^", (value, power))

    def command(self, name: str) -> Expression:
        if name == "frac":
            return Operation("/", (self.argument(), self.argument()))
        if name == "binom":
            return Operation("binom", (self.argument(), self.argument()))
        if name in ("lfloor", "lceil"):
            value = self.expression()
            closing = self.take()
            if closing.kind != "command" or closing.text != "r" + name[1:]:
                self.fail()
            return Operation(name[1:], (value,))
        self.position -= 1
        self.fail()

    # Units.

    def ends(self) -> bool:
        token = self.peek()
        closing = token.kind in ("end", ",", ";", "∪", ")", "]", "}", "⟧", "&", *COMPARED)
        joining = token.kind == "name" and token.text in ("and", "or")
        return closing or joining or (token.kind == "command" and token.text == "end")

    def unit(self, currency: str = "") -> Unit | None:
        """What stands between the value and the end of the item; None where that is nothing.

        `currency` is a sign that stood before the value: $5 per day.
        """
        text, depth = "", 0
        first = self.peek()
        if first.kind == "word" and not first.spaced and not is_known(first.text):
            self.fail()
        while self.peek().kind != "end" and not (depth == 0 and self.ends()):
            token = self.take()
            power = token.kind == "number" and token.text in ("1", "2", "3")
            if token.kind not in _OF_UNITS and not power:
                self.fail()
            if power and not token.spaced and text[-1:].isalpha():
                text += "^"  # cm2
            depth += (token.kind in "({") - (token.kind in ")}")
            text += (" " if token.kind in ("word", "name", "unit") else "") + token.text
        if not text.strip() and not currency:
            return None
        repeated = bool(currency) and read_unit(text) == read_unit(currency)  # $5 dollars
        unit = read_unit(text if repeated else f"{currency} {text}".strip())
        if unit is None:
            self.fail()
        return unit


def _power(base: Expression, exponent: Expression) -> Expression:
    if isinstance(base, Operation) and base.name == "letters":  # of xy^2, only y is squared
        *first, last = base.arguments
        return Operation("letters", (*first, Operation("^", (last, exponent))))
    return Operation("^", (base, exponent))


def _product(left: Expression, right: Expression, name: str) -> Operation:
    flat = isinstance(left, Operation) and left.name == name
    return Operation(name, (*left.arguments, right) if flat else (left, right))  # type: ignore[union-attr]


def _is_product(word: str) -> bool:
    return word.islower() and len(word) <= 3
