"""The forward of a module's class, with what our ops do replaced in its source.

Decoder layers, attentions and MLPs of some sixty families differ in what surrounds a few lines that
are the same in all of them. These are found by their form; the rest stays as it is. The forward is
parsed, changed and compiled again with its own globals and its own place in its file, and becomes
that of one instance.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn

from r1kernels.hf.elementwise.activations import activation_of, gated
from r1kernels.hf.elementwise.norms import add_norm
from r1kernels.hf.elementwise.rotations import rotation_of

HELPERS = {"_r1_add_norm": add_norm, "_r1_gated": gated}
MAKE = "_r1_make"


class Rewritten:
    """A forward to be called with the module; where it is unpickled it is made again.

    changes: what became of which lines. left: what was left of what looks alike, and why.
    """

    def __init__(self, kind: type[nn.Module], activations: Mapping[str, str | None]) -> None:
        self.kind, self.activations = kind, dict(activations)
        self.function, self.changes, self.left = _rewritten(
            kind.forward, tuple(self.activations.items()), _rotary_functions(kind.forward)
        )

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.kind.forward)

    def __reduce__(self) -> Any:
        return Rewritten, (self.kind, self.activations)

    def __deepcopy__(self, memo: Any) -> Rewritten:
        return self


def rewritten(module: nn.Module) -> Rewritten:
    """The rewritten forward of a module's class; ``changes`` says whether there is any need."""
    children = ((name, child) for name, child in module._modules.items() if child is not None)
    bare = ((n, c) for n, c in children if not (c._modules or c._parameters or c._buffers))
    return Rewritten(type(module), {name: activation_of(child) for name, child in bare})


def _rotary_functions(forward: Any) -> tuple[tuple[str, Any], ...]:
    """Those that a forward calls by a name of its module, as they are now."""
    inner = inspect.unwrap(forward)
    if not inspect.isfunction(inner):
        return ()
    names = [name for name in inner.__code__.co_names if "rotary" in name]
    known = inner.__globals__
    return tuple((name, known[name]) for name in names if callable(known.get(name)))


@cache
def _rewritten(
    forward: Any,
    activations: tuple[tuple[str, str | None], ...],
    rotary: tuple[tuple[str, Any], ...],
) -> tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]:
    """(the new forward, what was changed, what was left); ``forward`` where nothing was."""
    inner, wrappers = forward, 0
    while hasattr(inner, "__wrapped__"):
        inner, wrappers = inner.__wrapped__, wrappers + 1
    try:
        lines, first = inspect.getsourcelines(inner)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # there is no source
        return forward, (), ()
    changer = _Changer(dict(activations), dict(rotary))
    changer.visit(tree)
    reason = ""
    if inner.__closure__:
        reason = "its forward has variables of what surrounds it"
    elif wrappers != len(tree.body[0].decorator_list):  # type: ignore[attr-defined]
        reason = "its forward is wrapped by something outside of its source"
    if reason:
        return forward, (), (*changer.left, *(f"{each}: {reason}" for each in changer.changes))
    if not changer.changes:
        return forward, (), tuple(changer.left)
    return _compiled(tree, inner, first, changer), tuple(changer.changes), tuple(changer.left)


def _compiled(tree: ast.Module, inner: Any, first: int, changer: _Changer) -> Callable[..., Any]:
    """The function of ``tree`` within one that takes what it needs beside its globals."""
    definition: Any = tree.body[0]
    definition.returns = None
    arguments = definition.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
                     arguments.vararg, arguments.kwarg):  # fmt: skip
        if argument is not None:
            argument.annotation = None
    given = HELPERS | changer.rotations
    make: Any = ast.parse(f"def {MAKE}({', '.join(given)}):\n    return {definition.name}").body[0]
    make.body.insert(0, definition)
    module = ast.fix_missing_locations(ast.Module([make], []))
    ast.increment_lineno(module, first - 1)
    made: dict[str, Any] = {}
    exec(compile(module, inner.__code__.co_filename, "exec"), inner.__globals__, made)
    function: Callable[..., Any] = made[MAKE](**given)
    return function


class _Changer(ast.NodeTransformer):
    """Replaces what it knows, and keeps account of it."""

    def __init__(self, activations: Mapping[str, str | None], rotary: Mapping[str, Any]) -> None:
        self.activations, self.rotary = activations, rotary
        self.rotations: dict[str, Any] = {}
        self.changes: list[str] = []
        self.left: list[str] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse"):
            if isinstance(block := getattr(node, name, None), list):
                setattr(node, name, self._add_norms(block))
        return node

    def _add_norms(self, block: list[ast.stmt]) -> list[ast.stmt]:
        """a = b + …; b = a; a = self.norm(a) → a, b = add_norm(self.norm, …, b)."""
        found: list[ast.stmt] = []
        while block:
            if (new := _add_norm(block[:3])) is not None:
                found.append(new)
                self.changes.append("residual add and norm")
            else:
                found.append(block[0])
            block = block[1 if new is None else 3 :]
        return found

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """self.act(gate) * up, either way round."""
        self.generic_visit(node)
        if not isinstance(node.op, ast.Mult):
            return node
        for act, up in ((node.left, node.right), (node.right, node.left)):
            name = _own_call(act)
            if name is None or name not in self.activations:
                continue
            activation = self.activations[name]
            if activation is None:
                self.left.append(f"self.{name}(…)·…: no activation that the ops know")
                continue
            called: Any = act
            if act is node.right and not isinstance(up, ast.Name):
                self.left.append(f"…·self.{name}(…): would change the order of calls")
                continue
            self.changes.append(f"{activation}(gate)·up")
            given = [called.func, ast.Constant(activation), called.args[0], up]
            return _call("_r1_gated", given, node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """apply_rotary_pos_emb(q, k, cos, sin), by whatever name that is."""
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self.rotary:
            return node
        if len(node.args) != 4 or node.keywords:
            self.left.append(f"{name}: called with other arguments than q, k, cos, sin")
        elif (rotation := rotation_of(self.rotary[name])) is None:
            self.left.append(f"{name}: it rotates in a way that rope does not")
        else:
            self.rotations[f"_r1_{name}"] = rotation
            self.changes.append(f"rotary positions, {rotation}")
            return _call(f"_r1_{name}", node.args, node)
        return node


def _add_norm(three: list[ast.stmt]) -> ast.stmt | None:
    match three:
        case [
            ast.Assign([ast.Name(a)], ast.BinOp(left, ast.Add(), right)),
            ast.Assign([ast.Name(b)], ast.Name(copied)),
            ast.Assign([ast.Name(result)], ast.Call(norm, [ast.Name(normed)], [])),
        ] if a == copied == normed == result != b and _of_self(norm) is not None:
            for residual, added in ((left, right), (right, left)):
                if isinstance(residual, ast.Name) and residual.id == b:
                    target = ast.Tuple([ast.Name(a, ast.Store()), ast.Name(b, ast.Store())],
                                       ast.Store())  # fmt: skip
                    value = _call("_r1_add_norm", [norm, added, residual], three[2])
                    return ast.copy_location(ast.Assign([target], value), three[0])
    return None


def _call(name: str, args: list[ast.expr], node: ast.AST) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), args, []), node)


def _own_call(node: ast.AST) -> str | None:
    """``name`` of self.name(one argument)."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return _of_self(node.func)
    return None


def _of_self(node: ast.AST) -> str | None:
    match node:
        case ast.Attribute(ast.Name("self"), name):
            return name
    return None
