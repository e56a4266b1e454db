"""The one pattern by which every op is declared, registered with PyTorch and dispatched.

An op has one schema, one PyTorch reference, one fake and at most one backward, and any number of
implementations. Declaring it here gives it a name under ``torch.ops.r1kernels``, a place in ``OPS``
(over which tests and benchmarks loop), and a choice at run time that can be explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from r1kernels.core import autocast, check, device_records, gradient, native, once
from r1kernels.core.arguments import fields_of
from r1kernels.core.implementation import Implementation, Predicate, always, device_of
from r1kernels.core.names import nearest
from r1kernels.core.plan import Plan, as_declared, kinds_of, observed

OPS: dict[str, Op] = {}

# The first able backend wins, within it a variant before the plain implementation; the PyTorch
# reference is able everywhere.
PREFERENCE: dict[str, tuple[str, ...]] = {"cuda": ("cuda", "triton"), "cpu": ("cpp",)}

# backend → what imports a module with kernels for it, and gives the reason why it cannot, or None.
LOADERS: dict[str, Callable[[str], str | None]] = {}

_LIB = torch.library.Library("r1kernels", "DEF")
# Process-wide on purpose: autograd runs the backward of CUDA tensors on threads of its own.
_PINNED: dict[str, tuple[str, ...]] = {}  # op → names of implementations, in order


@dataclass(frozen=True)
class Case:
    """One set of arguments for an op: parity tests and benchmarks loop over these.

    Args:
        name: what is special about it, e.g. ``"odd vocabulary"``.
        make: ``make(device) -> args``, the op's positional arguments, the same at every call.
        flops: arithmetic operations of one call, for the roofline.
        bytes: least memory traffic of one call, in bytes, for the roofline.
        tier: ``"bitwise"`` for integers and selections, ``"budget"`` for floating point,
            ``"codes"`` where that is quantized in the end: e4m3 codes may be one step apart.
        bench: too large for tests, timed by the benchmarks: True on every device, "cpu" or "cuda"
            on that one only.
    """

    name: str
    make: Callable[[str], tuple[Any, ...]]
    flops: float = 0.0
    bytes: float = 0.0
    tier: str = "budget"
    bench: bool | str = False

    def timed_on(self, device: str) -> bool:
        return self.bench in (True, device)


class Choice(NamedTuple):
    """Which implementation runs, and for each better one why it does not."""

    implementation: str
    reasons: dict[str, str]


class Op:
    """A registered operation.

    Args:
        schema: the PyTorch schema. Give no defaults in it: PyTorch drops trailing arguments that
            equal their default before it calls a Python implementation.
        reference: plain PyTorch, on every device and in fp64 too. It is the fallback, the thing
            every backend is compared with, and the specification.
        fake: the same signature; makes empty outputs of the right shape, dtype and device.
        save: ``save(ctx, inputs, output)``, required with ``backward``; inputs have names, as
            ``bind`` gives them.
        backward: ``backward(ctx, *grads) -> one gradient or None per input``, as ``gradients``
            makes them. Without one, a backward pass that comes to the op raises.
        validate: checks of the *values* of arguments. On the CPU they run at every call, before
            any backend, and not under tracing; on a GPU they would wait for the device, so there
            they run within ``r1kernels.checked()``, and else the kernels guard themselves.
        cases: arguments for tests and benchmarks.
        opaque: positions of outputs that are a backend's private memory, never compared.
        triton: the module that plugs in its Triton kernels, imported at the first call that could
            run there.
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        validate: Callable[..., None] | None = None,
        cases: Sequence[Case] = (),
        opaque: Sequence[int] = (),
        triton: str | None = None,
    ) -> None:
        self.name = schema.split("(", 1)[0]
        # Of what it makes the gradient, or else itself.
        self.forward_name = self.name.removesuffix("_").removesuffix("_backward")
        self.modules = {"triton": triton} if triton else {}
        self.cases, self.opaque = tuple(cases), tuple(opaque)
        self.differentiable = backward is not None
        self._mutable = "!" in schema
        self._validate = validate
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self.implementations: dict[str, Implementation] = {}
        self.implementation("torch")(reference)
        for backend in native.DEVICE:
            self.compiled(backend)
        _LIB.define(schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))
        _LIB.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"r1kernels::{self.name}", _on_one_device(self.name, fake), lib=_LIB
        )
        self.overload = getattr(torch.ops.r1kernels, self.name).default
        self._fields = fields_of(self.overload)
        self._no_gradients = self._fields(*[None] * len(self._fields._fields))
        differentiate = (
            self._refuse_backward if backward is None else once.once(self.name)(backward)
        )
        self._function = gradient.function_of(self.name, self._fields, save, differentiate)
        if not self._mutable:  # what writes to its arguments has no gradient
            gradient.register(_LIB, self.overload, self._function)
        OPS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)  # below this call torch.func.jvp has taken them away
        if not observed() and (plan := self._plan(args)).direct:
            if not plan.requires_grad or self._mutable or not torch.is_grad_enabled():
                return self._compute(plan, args)
            return self._function.apply(*args, lambda *inputs: self._compute(plan, inputs))
        tracked = torch.is_grad_enabled() and any(map(_requires_grad, args))
        if not tracked and not torch.compiler.is_compiling():
            with torch._C._AutoDispatchBelowAutograd():
                return self.overload(*args)
        try:
            return self.overload(*args)
        except RuntimeError as error:
            if "setup_context" not in str(error):  # PyTorch's word on every registered gradient
                raise
            raise NotImplementedError(
                f"{self.name}: torch.func.grad, vjp and jacrev do not go through it: use "
                "torch.autograd.grad or .backward()"
            ) from error

    def __repr__(self) -> str:
        return f"Op({self.overload._schema})"

    def bind(self, args: Iterable[Any]) -> Any:
        """All arguments of a call as a named tuple: ``op.bind(args).weight``.

        Raises:
            TypeError: there are more or fewer than the schema has.
        """
        return self._fields._make(args)

    def needed(self, ctx: Any) -> Any:
        """For ``backward``: by name, whether the gradient of an argument is asked for."""
        return self._fields._make(ctx.needs_input_grad[:-1])  # the last is no argument of the op

    def gradients(self, **by_name: Any) -> Any:
        """What ``backward`` returns: the gradients of these arguments, None for all others."""
        return self._no_gradients._replace(**by_name)

    def call(self, **by_name: Any) -> Any:
        """As a call, with every argument by its name: for ops of which a slip would go unseen."""
        return self(*self._fields(**by_name))

    def implementation(
        self,
        backend: str,
        variant: str = "",
        *,
        archs: Sequence[str] = (),
        takes: Predicate = always,
        when: Predicate = always,
        guarded: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that plugs in a function with the reference's signature.

        The arguments are those of ``Implementation``. Variants of one backend are tried in the
        order in which they come, and before its plain implementation.
        """

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            made = Implementation(
                self.name, backend, variant, run, tuple(archs), takes, when, guarded
            )
            self.implementations[made.name] = made
            self._plans.clear()
            return run

        return add

    def compiled(
        self,
        backend: str,
        variant: str = "",
        *,
        archs: Sequence[str] = (),
        when: Predicate = always,
        guarded: bool = False,
    ) -> None:
        """Say what is known of a kernel in a compiled library beyond its schema.

        A plain kernel without conditions needs no word, a variant does: ``native.kernel_name``
        says what it is called there. The arguments are those of ``Implementation``.
        """
        kernel = native.kernel_name(self.name, variant)

        def takes(*args: Any) -> bool | str:
            return native.able(backend, kernel, args)

        def run(*args: Any) -> Any:
            try:
                return native.kernel(backend, kernel)(*args)
            except RuntimeError as error:  # of arguments, in our words, where it begins so
                told = str(error).splitlines()[0]
                if told.startswith(f"{self.name}: "):
                    raise ValueError(told) from None
                raise

        self.implementation(backend, variant, archs=archs, takes=takes, when=when, guarded=guarded)(
            run
        )

    def named(self, name: str) -> tuple[str, ...]:
        """The implementations that "cuda" (a backend, variants first) or "cuda:sm90" stands for.

        A backend with a module is imported by asking; there is none if ``absent`` says why.
        """
        if self.absent(name) is not None:
            return ()
        if ":" in name:
            return (name,)
        of_it = [each for each in self.implementations.values() if each.backend == name]
        return tuple(each.name for each in sorted(of_it, key=lambda each: not each.variant))

    def absent(self, name: str) -> str | None:
        """Why there is no such backend or implementation of this op, or None."""
        backend = name.partition(":")[0]
        reason = None
        if (module := self.modules.get(backend)) is not None:
            reason = LOADERS[backend](module)
        known = {each.backend for each in self.implementations.values()}
        if name in known or name in self.implementations:
            return None
        return reason or f"{self.name} has no {name} implementation"

    def select(self, *args: Any) -> Choice:
        """What these arguments run on, with the reason against each better implementation."""
        return self._select(self._plan(args), args)

    def _select(self, plan: Plan, args: Sequence[Any]) -> Choice:
        reasons: dict[str, str] = {}
        pinned = _PINNED.get(self.name)
        settled = True
        for backend in ("",) if pinned else (*plan.preferred, "torch"):
            if (names := pinned or plan.names.get(backend)) is None:
                names = plan.names[backend] = self.named(backend) or (backend,)
            for name in names:
                if (taken := plan.taken.get(name)) is None:
                    taken = self.absent(name) or self.implementations[name].takes_kinds_of(args)
                    plan.taken[name] = taken
                if taken is True:
                    one = self.implementations[name]
                    if one.when is not always:
                        taken, settled = one.when(*args), False
                    if taken is True and one.guarded and not _asked_for(one, pinned):
                        known_as = self.name.removesuffix("_")
                        taken = device_records.missing(known_as, name, plan.device) or True
                        settled = False
                if taken is True:
                    if settled:
                        plan.settled[pinned] = name
                    return Choice(name, reasons)
                reasons[name] = taken or "cannot take these arguments"
        assert pinned  # the reference takes everything
        raise RuntimeError(
            f"{self.name}: pinned to backend {' or '.join(map(repr, pinned))}, which cannot run: "
            f"{'; '.join(reasons.values())}"
        )

    def _plan(self, args: Sequence[Any]) -> Plan:
        kinds = kinds_of(args)
        plan = self._plans.get(kinds)
        if (
            plan is None
            or plan.implementations is not self.implementations
            or plan.preferred is not PREFERENCE.get(plan.device, ())
        ):
            device = device_of(args).type
            direct = device in PREFERENCE and as_declared(self.overload, args)
            requires_grad = any(map(_requires_grad, args))
            preferred = PREFERENCE.get(device, ())
            plan = Plan(device, direct, requires_grad, {}, {}, {}, preferred, self.implementations)
            self._plans[kinds] = plan
        return plan

    @contextmanager
    def using(self, backend: str) -> Iterator[None]:
        """Pin this op as ``r1kernels.using`` does, until the block ends."""
        with using(backend, self):
            yield

    @contextmanager
    def only(self, implementation: str) -> Iterator[None]:
        """Pin this op to one implementation: "cuda" is the plain one, and none of its variants.

        Tests and benchmarks look at one at a time in this way.
        """
        _check_known(self, implementation)
        with _pinned({self.name: (implementation,)}):
            yield

    def _run(self, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        return self._compute(self._plan(args), args)

    def _compute(self, plan: Plan, args: Sequence[Any]) -> Any:
        if self._validate is not None and (plan.device == "cpu" or check.checking()):
            self._validate(*args)
        pinned = _PINNED.get(self.name)
        chosen = plan.settled.get(pinned) or self._select(plan, args).implementation
        run = self.implementations[chosen].run
        if torch._C._is_any_autocast_enabled() and autocast.enabled(plan.device):
            run = autocast.without(run, plan.device)
        if not torch.is_grad_enabled():
            return run(*args)
        if self._mutable and plan.requires_grad:
            self._refuse_backward()
        # Gradients are the registered backward's, never a reference's own. As torch.no_grad() does
        # it, which takes ten times as long.
        torch._C._set_grad_enabled(False)
        try:
            return run(*args)
        finally:
            torch._C._set_grad_enabled(True)

    def _refuse_tangents(self, args: Sequence[Any]) -> None:
        if any(map(_has_tangent, args)):
            raise NotImplementedError(
                f"{self.name}: it has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, "
                "forward_ad): use torch.autograd.grad or .backward()"
            )

    def _refuse_backward(self, *_: Any) -> Any:
        if self.forward_name in OPS and OPS[self.forward_name].differentiable:
            raise once.second_derivative(self.forward_name)
        raise NotImplementedError(f"{self.name}: it has no gradient: detach its arguments")


@contextmanager
def using(backend: str, *ops: Op | str) -> Iterator[None]:
    """Pin ops to one backend, in the whole process, until the block ends.

    A pinned backend that cannot run is an error when the op is called, never a fallback.

    >>> with r1kernels.using("torch", "linear_logprob", "linear_logprob_backward"):
    ...     loss = r1kernels.fused_linear_grpo_loss(hidden, weight, target, **options).loss

    Args:
        backend: "torch" (the reference), "cpp", "cuda", "triton", or one that was plugged in, with
            its variants; or one variant alone: "cuda:sm90".
        ops: names of ops, as ``python -m r1kernels`` lists them; all that have it by default. The
            gradient of an op is made by an op of its own, named …_backward: pin both passes of a
            head alike, since what the forward pass kept is its backend's own.

    Raises:
        ValueError: no such backend, or no such op; names the nearest.
    """
    chosen = [op if isinstance(op, Op) else find("using", op) for op in ops]
    for op in chosen:
        _check_known(op, backend)
    if not ops:
        known = chain(
            ("torch",), *PREFERENCE.values(), *(op.implementations for op in OPS.values())
        )
        check.choice("using", "backend", backend, tuple(dict.fromkeys(known)))
        chosen = [op for op in OPS.values() if op.absent(backend) is None]
    with _pinned({op.name: op.named(backend) for op in chosen}):
        yield


def _check_known(op: Op, backend: str) -> None:
    if (reason := op.absent(backend)) is not None:
        known = tuple(op.implementations)
        raise ValueError(
            f"{op.name}: unknown backend {backend!r}, expected one of: {', '.join(known)} "
            f"({reason}){nearest(backend, known)}"
        )


@contextmanager
def _pinned(names: dict[str, tuple[str, ...]]) -> Iterator[None]:
    before = dict(_PINNED)
    _PINNED.update(names)
    try:
        yield
    finally:
        _PINNED.clear()
        _PINNED.update(before)


def _asked_for(one: Implementation, pinned: tuple[str, ...] | None) -> bool:
    """Whether a pin means this one: that of a backend means a variant only if it has no other."""
    return pinned is not None and (len(pinned) == 1 or not one.variant)


def find(caller: str, name: str) -> Op:
    """The op of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"{caller}: expected the name of an op, such as 'linear_logprob', got "
            f"{check.described(name)}"
        )
    if name in OPS:
        return OPS[name]
    raise ValueError(
        f"{caller}: unknown op {name!r}, expected one of: {', '.join(OPS)}{nearest(name, OPS)}"
    )


def is_pinned(op: Op) -> bool:
    """Whether ``using`` says what ``op`` runs on."""
    return op.name in _PINNED


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """One tensor on the device "meta" brings all of them here: without it, results of nothing."""

    def run(*args: Any) -> Any:
        devices = {arg.device for arg in args if isinstance(arg, torch.Tensor)}
        if len(devices) > 1:
            declared = getattr(torch.ops.r1kernels, name).default._schema.arguments
            got = ", ".join(
                f"{argument.name} on {arg.device}"
                for argument, arg in zip(declared, args, strict=True)
                if isinstance(arg, torch.Tensor)
            )
            raise ValueError(f"{name}: expected tensors on one device, got {got}")
        return fake(*args)

    return run


def _has_tangent(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None


def _requires_grad(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and arg.requires_grad
