"""Translates r1kernels/policy/surrogates.py into a C++ header over the vectors of simd.h.

Usage: surrogates_header.py SOURCE HEADER. The functions there are straight lines of arithmetic, so
that this can be short: anything it does not know is an error that names the line. Imports no
PyTorch.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
ROW = ("logprob", "old_logprob", "log_ratio", "advantage", "selected")
RESULTS = {1: "F", 2: "Two", 4: "Four"}
HEAD = """\
// Made by csrc/cpu/policy/surrogates_header.py from r1kernels/policy/surrogates.py.
// Include inside r1::R1_ISA."""


def constant(node: ast.expr) -> float | None:
    """The value of an expression of numbers alone."""
    if any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node)):
        return None
    return float(eval(compile(ast.Expression(node), "<constant>", "eval")))


def expression(node: ast.expr) -> str:
    match node:
        case _ if (value := constant(node)) is not None:
            return f"splat({value!r}f)"
        case ast.Name(name):
            return name
        case ast.UnaryOp(ast.USub(), operand):
            return f"(-{expression(operand)})"
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            return f"({expression(left)} {OPERATORS[type(operator)]} {expression(right)})"
        case ast.Compare(left, [operator], [right]) if type(operator) in COMPARISONS:
            return f"({expression(left)} {COMPARISONS[type(operator)]} {expression(right)})"
        case ast.Call(ast.Name(name), args, []):
            return f"{name}({', '.join(map(expression, args))})"
    raise SystemExit(f"surrogates.py:{node.lineno}: cannot translate {ast.unparse(node)}")


def statement(node: ast.stmt, known: set[str]) -> str:
    match node:
        case ast.Assign([ast.Name(name)], value):
            kind = "" if name in known else "F "
            known.add(name)
            return f"{kind}{name} = {expression(value)};"
        case ast.Assign([ast.Tuple(names)], value):
            known.update(ast.unparse(name) for name in names)
            return f"const auto [{', '.join(map(ast.unparse, names))}] = {expression(value)};"
        case ast.Return(ast.Tuple(values)):
            return f"return {{{', '.join(map(expression, values))}}};"
        case ast.Return(ast.expr() as value):
            return f"return {expression(value)};"
    raise SystemExit(f"surrogates.py:{node.lineno}: cannot translate {ast.unparse(node)}")


def function(node: ast.FunctionDef) -> str:
    names = [argument.arg for argument in node.args.args]
    body = node.body[ast.get_docstring(node) is not None :]
    returned = body[-1].value if isinstance(body[-1], ast.Return) else None
    if returned is None:
        raise SystemExit(f"surrogates.py:{node.lineno}: expected a value at the end of {node.name}")
    results = len(returned.elts) if isinstance(returned, ast.Tuple) else 1
    known = set(names)
    lines = [f"  {statement(line, known)}" for line in body]
    arguments = ", ".join(f"[[maybe_unused]] F {name}" for name in names)
    head = f"static inline {RESULTS[results]} {node.name}({arguments}) {{"
    return "\n".join([head, *lines, "}"])


def row_form(name: str, options: int) -> str:
    """A surrogate as a function of its row and an array of its options."""
    given = [*(f"row.{value}" for value in ROW), *(f"options[{i}]" for i in range(options))]
    return (
        f"static Four {name}_row(const Row& row, [[maybe_unused]] const F* options) {{\n"
        f"  return {name}({', '.join(given)});\n}}"
    )


def translate(source: str) -> str:
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    parts, surrogates, estimators = [HEAD], [], []
    for node in functions:
        names = tuple(argument.arg for argument in node.args.args)
        parts.append(function(node))
        if names[: len(ROW)] == ROW:
            parts.append(row_form(node.name, len(names) - len(ROW)))
            surrogates.append(node.name)
        elif names == ("x",):
            estimators.append(node.name)
    for table, entries in (("R1_SURROGATES", surrogates), ("R1_ESTIMATORS", estimators)):
        parts.append(f"#define {table}(use) {' '.join(f'use({name})' for name in entries)}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    source, header = map(Path, sys.argv[1:])
    text = translate(source.read_text())
    if not header.exists() or header.read_text() != text:  # an unchanged header stays old
        header.write_text(text)
