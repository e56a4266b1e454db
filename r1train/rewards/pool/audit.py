"""What a verifier may do while it judges an answer: an audit hook of the interpreter.

Events are of three kinds. Free ones are those of importing and of reading files. Watched ones are
what honest verifiers do too, but what an answer could use to run code of its own: the keeper is
told before it runs, and the process judges no further answer. Everything else is refused: the
answer is an error and the process ends on the spot, so that no `except` swallows it.

Text that is evaluated may be an expression and no more (see `_fault`). What sympy's parser makes of
numbers and elementary functions is then free: it cannot change a thing, and with a fork for each of
its answers countdown would take ten times as long.

Over the reference answers, lists and junk for all of reasoning-gym's datasets, honest verifiers
raised only `compile`, `exec`, `builtins.id`, `object.__getattr__` (sympy's cache of signatures),
and what importing does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dis import opmap
from types import CodeType, FrameType
from typing import Any

_FREE = {
    "builtins.id",
    "glob.glob",
    "glob.glob/2",
    "import",
    "os.listdir",
    "os.scandir",
    "os.walk",
    "pathlib.Path.glob",
    "pathlib.Path.rglob",
}
_WATCHED = {
    "array.__new__",
    "compile",
    "exec",
    "object.__getattr__",
    "sys._getframe",
    "sys._getframemodulename",
    "sys.unraisablehook",
    "time.sleep",
}
# What loading a module does besides: its code is a file's, not an answer's.
_IMPORTING = {
    "code.__new__",
    "compile",
    "exec",
    "function.__new__",
    "marshal.loads",
    "object.__getattr__",
    "object.__setattr__",
    "sys._getframe",
    "sys._getframemodulename",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

# Where sympy makes text of its own and runs it: "from sympy import *", and functions of tuples.
_SYMPYS_OWN = {("parsing/sympy_parser.py", "parse_expr"), ("polys/monomials.py", "_build")}
_SYMPYS_PARSER = ("parsing/sympy_parser.py", "eval_expr")
# What its parser makes of numbers, symbols and functions, and elementary mathematics. Not there:
# what parses, prints, compiles or plots, and `Integral`, whose derivative is always right.
_MATHEMATICS = frozenset(
    """
    Abs Add Ci E Ei Eq EulerGamma Float Function Ge GoldenRatio Gt Heaviside I Integer LambertW Le
    Lt Max Min Mod Mul Ne Piecewise Pow Rational Si Symbol acos acosh acot acoth acsc acsch arg asec
    asech asin asinh atan atan2 atanh beta binomial cbrt ceiling conjugate cos cosh cot coth csc
    csch erf erfc erfi exp factorial floor fresnelc fresnels gamma gcd im lcm li ln log loggamma nan
    oo pi re real_root root sec sech sign sin sinc sinh sqrt tan tanh zeta zoo
    """.split()  # noqa: SIM905
)
_CHANGING = frozenset(
    number for name, number in opmap.items() if name.startswith(("STORE_", "DELETE_", "IMPORT_"))
)


class Refused(Exception):
    """Not for verifiers to catch: the hook ends the process with it."""


class Audit:
    """The hook's memory of the answer that is being judged."""

    def __init__(self, on_watched: Callable[[], None], on_refused: Callable[[str], None]) -> None:
        self.on_watched, self.on_refused = on_watched, on_refused
        self.watched = False
        """Whether this process must judge no further answer."""
        self.inside = False  # looking at frames raises an event too

    def install(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _FREE or self.inside:
            return
        self.inside = True
        try:
            self._judge(event, args)
        except Refused as refusal:
            self.on_refused(str(refusal))
        finally:
            self.inside = False

    def _judge(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if args[2] & _WRITING:
                raise Refused(f"a verifier may not write files: {str(args[0])[:100]}")
            return
        caller = sys._getframe(2)  # beyond the hook: who raised the event
        if event in _IMPORTING and _is_import(caller):
            return
        if event not in _WATCHED:
            raise Refused(f"a verifier may not do this: {event}")
        function = _sympy_function(caller)
        if event in ("compile", "exec") and function in _SYMPYS_OWN:
            return
        parsing = function == _SYMPYS_PARSER
        if parsing and event == "compile":
            return
        fault = None
        if event == "exec":
            given = caller.f_locals.get("local_dict") if parsing else None
            known = _MATHEMATICS.union(given or ()) if parsing else frozenset()
            fault = _fault(args[0], known)
            if parsing and fault is None:
                return
        if not self.watched:
            self.on_watched()  # before any of the answer's code runs
            self.watched = True
        if fault is not None:
            raise fault


def _is_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _sympy_function(frame: FrameType) -> tuple[str, str]:
    """The file within sympy and the name of a frame's function; another file's is no match."""
    path = frame.f_code.co_filename.replace(os.sep, "/").rpartition("/sympy/")[2]
    return path, frame.f_code.co_name


def _fault(code: CodeType, known: frozenset[str]) -> Exception | None:
    """Why code made from an answer may not run: it is more than an expression of what it may know.

    Attributes and imports are names of a code object as well as variables are. Plain `eval` may use
    none, since the verifier's own variables hold the reference answer; sympy's parser those of
    mathematics and those that the verifier gave it. Any other name is one that is not defined, as
    for a word that was never meant to be evaluated; what only an attempt would have is refused.
    """
    nested = any(isinstance(constant, CodeType) for constant in code.co_consts)
    if nested or not _CHANGING.isdisjoint(code.co_code[::2]):
        return Refused("evaluated text may not define, assign, delete or import anything")
    unknown = [name for name in code.co_names if name not in known]
    if not unknown:
        return None
    special = next((name for name in unknown if "__" in name), None)
    if special is not None:
        return Refused(f"evaluated text may not use the name {special[:100]!r}")
    return NameError(f"name {unknown[0][:100]!r} is not defined for evaluated text")
