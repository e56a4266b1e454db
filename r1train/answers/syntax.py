"""Mathematics as LaTeX, Python and people write it, read into the forms of `nodes`.

A recursive-descent parser of a grammar of its own: text never reaches `eval`. It refuses what it
does not know, so that a text is not taken for mathematics.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from r1train.answers.expressions import COMPARED, ExpressionParser
from r1train.answers.latex import plain
from r1train.answers.nodes import (
    Alternatives,
    Form,
    Infinity,
    Matrix,
    Number,
    Operation,
    Quantity,
    Sequence,
)
from r1train.answers.relations import chain, intersection, is_inequality
from r1train.answers.tokens import Token, Unreadable, tokens
from r1train.answers.units import CURRENCIES, SCALES

LONGEST = 2000
"""Characters of the longest text that is read as mathematics."""
_DEEPEST_ITEMS = 4
_NEVER_NAMES = re.compile(
    r"\b(?:not?|isn|never|wrong|incorrect|false|or|and|if|except|but|either|neither)\b",
    re.IGNORECASE,
)


def parse(text: str, *, commas: bool = True, applied: bool = False) -> Form:
    """The form of a cleaned text; raises Unreadable.

    `commas` says that 1,000 is a thousand, outside brackets; else a comma always separates.
    `applied` says that letters before brackets are functions: O(n^2) is no product.
    """
    if not text or len(text) > LONGEST:
        raise Unreadable("empty or too long")
    return _Parser(tokens(plain(text), commas), applied=applied).answer()


class _Parser(ExpressionParser):
    def __init__(self, tokens: list[Token], *, applied: bool) -> None:
        super().__init__(tokens, applied=applied)
        self.items = 0  # that are open

    def answer(self) -> Form:
        form = self.listed("end")
        self.expect("end")
        return form

    def listed(self, end: str) -> Form:
        """Items up to `end`: separated by commas a sequence, by "or" alternatives."""
        items, either, both, union = [self.item()], False, False, False
        while self.peek().kind != end:
            if self.accept("∪"):
                either = union = True
            elif self.accept_name("or"):
                either = True
            elif self.accept(",", ";"):
                either = self.accept_name("or") or either
                both = self.accept_name("and") or both
                if self.peek().kind == end:
                    break
            elif self.accept_name("and"):
                both = True
            else:
                self.fail()
            items.append(self.item())
        if len(items) == 1:
            return items[0]
        if both and any(is_inequality(item) for item in items):
            if either:
                self.fail()
            return intersection(items)
        items = _flat(items, union)
        return Alternatives(tuple(items)) if either else Sequence(tuple(items))

    def item(self) -> Form:
        """One item; with a ± in it, those of both signs."""
        self.items += 1
        if self.items > _DEEPEST_ITEMS:
            self.fail()
        start, outer = self.position, self.signs
        self.signs = 0
        form = self.related()
        if self.signs:
            end, self.position, self.sign = self.position, start, -1
            form = Alternatives(tuple(_flat([form, self.related()])))
            self.sign = 1
            if end != self.position:
                self.fail()
        self.signs = outer
        self.items -= 1
        return form

    def related(self) -> Form:
        name = self.name()
        form = self.single()
        sides, kinds = [form], []
        while self.peek().kind in COMPARED:
            kinds.append(self.take().kind)
            sides.append(self.single())
        if not kinds:
            if name and isinstance(form, Quantity | Sequence | Alternatives):
                return replace(form, name=name)
            return form
        return chain(sides, kinds, name)

    def name(self) -> str | None:
        """The left side of `x = `, `f(x) = `, `Area = ` and `x ∈ `, which is taken; else None."""
        start = self.position
        words: list[str] = []
        while self.peek().kind in ("name", "word") and len(words) < 4:
            words.append(self.take().text)
            if self.accept("_"):
                words[-1] += "_" + self.subscript()
        if self.peek().kind == "(":  # f(x) = and (x, y) =
            ahead = 1
            while self.peek(ahead).kind in ("name", ","):
                ahead += 1
            if self.peek(ahead).kind == ")" and self.peek(ahead + 1).kind == "=":
                words.append("".join(self.take().text for _ in range(ahead + 1)))
        sentence = " ".join(words)
        if self.peek().kind in ("=", "∈") and not _NEVER_NAMES.search(sentence):
            self.position += 1
            return sentence or None
        self.position = start
        return None

    def single(self) -> Form:
        """A value with its unit, or something in brackets that is not an expression."""
        self.deeper()
        state = vars(self).copy()
        try:
            form = self.bracketed()
        except Unreadable:  # (x + 1)(x + 2) is no sequence
            form = None
        if form is None or not self.ends():
            vars(self).update(state)
            form = self.quantity()
        self.depth -= 1
        return form

    def bracketed(self) -> Form | None:
        """A sequence, a set or a matrix; None where an expression begins."""
        token = self.peek()
        if token.kind == "∅":
            self.position += 1
            return Alternatives(())
        if token.kind == "command" and token.text == "begin":
            return self.matrix()
        if token.kind in ("{", "⟦"):
            end = "}" if token.kind == "{" else "⟧"
            within = self.position > 0 and self.peek(-1).kind == token.kind
            self.position += 1
            if self.accept(end):
                return Alternatives(())
            grouped = token.kind == "{" and self.peek().kind == "⟦"  # LaTeX's {\{1, 2\}}
            form = self.listed(end)
            self.expect(end)
            if isinstance(form, Quantity) and within and self.peek().kind == end:
                return Alternatives((form,), braces=True)  # {1} may be 1, but not {{1}}
            if isinstance(form, Sequence) and not form.brackets:
                return Alternatives(form.items, braces=True)
            if isinstance(form, Alternatives) and (form.braces or not form.items) and not grouped:
                return Alternatives((form,), braces=True)
            return form
        if token.kind in ("(", "["):
            self.position += 1
            if self.accept("]"):
                return Sequence((), "[]")
            form = self.inside()
            brackets = token.kind + self.peek().kind
            self.expect(brackets[1:] if brackets[1:] in (")", "]") else ")")
            if isinstance(form, Sequence) and not form.brackets:
                return Sequence(form.items, brackets)
            if isinstance(form, Quantity) and not (brackets == "[]" and self.items > 1):
                return None
            listed = brackets == "[]" and not isinstance(form, Matrix)  # around an array
            return Sequence((form,), "[]") if listed else form
        return None

    def inside(self) -> Form:
        items = [self.item()]
        while self.accept(",", ";"):
            items.append(self.item())
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def matrix(self) -> Form:
        environment = self.environment("begin")
        if environment not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix"):
            self.fail()
        if environment == "array" and self.accept("{"):
            while not self.accept("}"):
                if self.take().kind not in ("name", "word", "|"):
                    self.fail()
        rows: list[tuple[Form, ...]] = []
        while not (self.peek().kind == "command" and self.peek().text == "end"):
            row = [self.item()]
            while self.accept("&"):
                row.append(self.item())
            rows.append(tuple(row))
            while self.accept(";"):
                pass
        if self.environment("end") != environment or len({len(row) for row in rows}) != 1:
            self.fail()
        return Matrix(tuple(rows))

    def environment(self, command: str) -> str:
        self.expect("command")
        self.expect("{")
        text = self.take().text
        self.expect("}")
        while command == "begin" and self.accept(";"):
            pass
        return text

    def quantity(self) -> Quantity:
        negative = self.peek().kind == "-" and self.peek(1).kind == "unit" and self.accept("-")
        coded = self.peek().text in CURRENCIES and self.peek(1).kind == "number"
        currency = self.take().text if self.peek().kind == "unit" or coded else None
        value = self.signed_infinity() or self.expression()
        if isinstance(value, Infinity):
            return Quantity(value)
        while self.peek().kind == "word" and self.peek().text.lower() in SCALES:
            scale = Number(Fraction(10) ** SCALES[self.take().text.lower()])
            if not isinstance(value, Number):
                self.fail()
            value = Number(value.value * scale.value)
        if negative:
            value = Operation("-", (value,))
        percent = self.accept("%")
        return Quantity(value, self.unit(currency or ""), percent)

    def signed_infinity(self) -> Infinity | None:
        start, sign = self.position, 1
        if self.accept("-"):
            sign = -1
        else:
            self.accept("+")
        if self.accept("∞") or any(self.accept_name(n) for n in ("inf", "infinity", "infty", "oo")):
            return Infinity(sign)
        self.position = start
        return None


def _flat(items: list[Form], union: bool = False) -> list[Form]:
    """With alternatives in the place of the item that they are of: ±2, 3 is 2, -2, 3; with the
    elements of sets only in their union."""
    flat: list[Form] = []
    for item in items:
        inner = isinstance(item, Alternatives) and item.items and (union or not item.braces)
        flat += item.items if inner else [item]  # type: ignore[union-attr]
    return flat
