"""Any ``torch.optim`` optimizer on parameters of few bits: FP8 codes with scales, and bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from r1kernels.core import check
from r1kernels.fp8.dequantize import fp8_dequantize
from r1kernels.fp8.format import BLOCK, E4M3, SCALE_FORMATS, blocks
from r1kernels.fp8.quantize import fp8_quantize
from r1kernels.nn.fp8_rounding import write_back

SCALE_SUFFIX = "_scale_inv"
MASTER, STEPS = "master", "fp8_steps"  # what a state_dict has beside the optimizer's own
E8M0 = torch.float8_e8m0fnu  # a power of two from 2^-127 on, by its exponent
HALF = (torch.bfloat16, torch.float16)
BAND = 4  # blocks of 128 rows that are rounded at once


def with_scales(module: nn.Module) -> list[nn.Parameter | tuple[nn.Parameter, Tensor]]:
    """The trained parameters of ``module``, each e4m3 one with its scale, for ``FP8Optimizer``.

    The scale of ``weight`` is the parameter or buffer ``weight_scale_inv`` beside it, as in
    checkpoints of DeepSeek-V3.
    """
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    scales = {name + SCALE_SUFFIX for name, tensor in tensors.items() if tensor.dtype == E4M3}
    return [
        (parameter, tensors[name + SCALE_SUFFIX]) if parameter.dtype == E4M3 else parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name not in scales
    ]


class FP8Optimizer(Optimizer):
    """``optimizer_class`` on floats that stand for FP8 parameters: step, then quantize again.

    >>> optimizer = FP8Optimizer(torch.optim.AdamW, with_scales(model), lr=1e-5)

    Gradients are the ``grad`` of the parameters, float32 (``parameter.grad_dtype``). Schedulers of
    the learning rate work as on any optimizer. bfloat16 and float16 parameters have masters too,
    since most updates would be rounded away; parameters of other dtypes are stepped as ever.

    Args:
        optimizer_class: such as ``torch.optim.AdamW``; its state is float32.
        parameters: parameters, and pairs (e4m3 parameter [R, C] or [E, R, C], its scale for blocks
            of 128 × 128, float32 or float8_e8m0fnu, written in place); or groups, dicts that have
            such "params".
        master: keep a float32 copy of each parameter in FP8, bfloat16 or float16, four bytes an
            element, that collects the updates. It is the "master" of the parameter's state, so
            that whatever shards or names the state of an optimizer finds it. What others write into
            the parameter is lost at the next step, which writes the copy over it: make the
            optimizer once the weights are in place. Without one an FP8 weight is made float32 for
            its own step, one weight at a time, and rounded back stochastically; bfloat16 and
            float16 are stepped as they are.
        scale_format: of the float32 scales made from masters: "float" or "ue8m0". Without masters
            scales move by powers of two, and so keep the format that they have; float8_e8m0fnu can
            hold no other than "ue8m0".
        seed: of the stochastic rounding, which is a function of it, of the count of steps and of
            the place of the parameter: the same in every run, and on every rank.
        options: of ``optimizer_class``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        optimizer_class: type[Optimizer],
        parameters: Iterable[Any],
        *,
        master: bool = True,
        scale_format: str = "float",
        seed: int = 0,
        **options: Any,
    ) -> None:
        check.choice("FP8Optimizer", "scale_format", scale_format, SCALE_FORMATS)
        self.seed, self.steps, self.master = seed, 0, master
        self.scale_format, self._weights = scale_format, list[_Weight | _Half]()
        self._new: Callable[[Any], Optimizer] = partial(optimizer_class, **options)
        self.optimizer: Optimizer
        super().__init__(parameters, {})  # which adds group after group

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Parameters to step from now on; "params" are such as those of the constructor."""
        given = param_group["params"]
        pairs = [_pair(entry) for entry in ([given] if isinstance(given, Tensor) else given)]
        added: list[_Weight | _Half] = [
            _Half(parameter)
            if scale is None
            else _Weight(parameter, scale, self.master, self.scale_format)
            for parameter, scale in pairs
            if scale is not None or (self.master and parameter.dtype in HALF)
        ]
        floats = {weight.parameter: weight.floats for weight in added}
        stepped = [floats.get(parameter, parameter) for parameter, _ in pairs]
        group = {**param_group, "params": stepped}
        if self.param_groups:
            self.optimizer.add_param_group(group)
        else:
            self.optimizer = self._new([group])
            self.defaults, self.state = self.optimizer.defaults, self.optimizer.state
        self._weights += added
        shown = self.optimizer.param_groups[-1]
        super().add_param_group({**shown, "params": [parameter for parameter, _ in pairs]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _copy_options(self.param_groups, self.optimizer.param_groups)
        if self.master:
            self._step_masters()
        else:
            self._step_one_by_one()
        self.steps += 1
        return loss

    def _step_masters(self) -> None:
        moved = [weight for weight in self._weights if weight.parameter.grad is not None]
        for weight in moved:
            assert weight.parameter.grad is not None
            weight.floats.grad = weight.parameter.grad.to(weight.floats.dtype)
        self.optimizer.step()
        for weight in moved:
            weight.floats.grad = None
            weight.write_back()

    def _step_one_by_one(self) -> None:
        groups = self.optimizer.param_groups
        indices = {weight.floats: index for index, weight in enumerate(self._weights)}
        try:
            for group in groups:
                plain = [p for p in group["params"] if p not in indices]
                if plain:
                    self.optimizer.param_groups = [{**group, "params": plain}]
                    self.optimizer.step()
                for floats in group["params"]:
                    if floats not in indices:
                        continue
                    weight = self._weights[indices[floats]]
                    assert isinstance(weight, _Weight)  # halves have masters, or are plain
                    if weight.parameter.grad is None:
                        continue
                    floats.data = weight.decoded()
                    floats.grad = weight.parameter.grad
                    self.optimizer.param_groups = [{**group, "params": [floats]}]
                    self.optimizer.step()
                    weight.round(self._generator(indices[floats], floats.device))
                    floats.grad = None
                    floats.data = floats.new_empty(0)
        finally:
            self.optimizer.param_groups = groups

    def _generator(self, index: int, device: torch.device) -> torch.Generator:
        mixed = ((self.seed * 1_000_003 + self.steps) * 1_000_003 + index) % 2**63
        return torch.Generator(device).manual_seed(mixed)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer; in each state its "master", in each group the count of steps."""
        _copy_options(self.param_groups, self.optimizer.param_groups)
        found = self.optimizer.state_dict()
        if self.master:
            for index, weight in self._weights_by_index().items():
                state = found["state"].get(index, {})
                found["state"][index] = {**state, MASTER: weight.floats.detach()}
        groups = [{**group, STEPS: self.steps} for group in found["param_groups"]]
        return {**found, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where ``state_dict`` was made; the codes themselves belong to the model's."""
        states, weights = state_dict["state"], self._weights_by_index()
        masters = {index: state[MASTER] for index, state in states.items() if MASTER in state}
        if masters.keys() != (weights.keys() if self.master else set()):
            expected, got = ("masters", "others") if self.master else ("no masters", "masters")
            raise ValueError(
                f"FP8Optimizer: state_dict: expected one with {expected} "
                f"(master={self.master}), got one with {got}"
            )
        inner = {
            index: {name: value for name, value in state.items() if name != MASTER}
            for index, state in states.items()
        }
        groups = state_dict["param_groups"]
        self.steps = groups[0][STEPS]
        groups = [{k: v for k, v in group.items() if k != STEPS} for group in groups]
        self.optimizer.load_state_dict({**state_dict, "state": inner, "param_groups": groups})
        self.state = self.optimizer.state
        _copy_options(self.optimizer.param_groups, self.param_groups)
        with torch.no_grad():
            for index, saved in masters.items():
                weights[index].floats.copy_(saved)

    def _weights_by_index(self) -> dict[int, _Weight | _Half]:
        """Those that floats stand for, by their number among all parameters."""
        weights = {weight.floats: weight for weight in self._weights}
        members = chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        return {index: weights[p] for index, p in enumerate(members) if p in weights}


class _Weight:
    """An FP8 parameter, its scale, and the floats that the optimizer steps in its stead."""

    def __init__(
        self, parameter: nn.Parameter, scale: Tensor, master: bool, scale_format: str
    ) -> None:
        self.parameter, self.scale = parameter, scale
        self.scale_format = "ue8m0" if scale.dtype == E8M0 else scale_format
        empty = torch.empty(0, device=parameter.device)
        self.floats = nn.Parameter(self.decoded() if master else empty, requires_grad=True)

    def decoded(self) -> Tensor:
        scale = self.scale.detach().float()
        return fp8_dequantize(self.parameter.detach(), scale, dtype=torch.float32)

    def write_back(self) -> None:
        """The floats back to the nearest codes."""
        found = fp8_quantize(self.floats, block=(BLOCK, BLOCK), scale_format=self.scale_format)
        self.parameter.copy_(found.data)
        self.scale.copy_(found.scale)

    def round(self, generator: torch.Generator) -> None:
        """The floats back to codes, stochastically, in bands of rows: each needs some scratch."""
        tensors = [self.floats.detach(), self.parameter.detach(), self.scale.detach()]
        if self.parameter.dim() == 2:
            tensors = [tensor[None] for tensor in tensors]
        for values, data, scale in zip(*tensors, strict=True):
            bands = values.split(BAND * BLOCK), data.split(BAND * BLOCK), scale.split(BAND)
            for band in zip(*bands, strict=True):
                write_back(*band, generator)


class _Half:
    """A bfloat16 or float16 parameter, and the floats that the optimizer steps in its stead."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.floats = nn.Parameter(parameter.detach().float())

    def write_back(self) -> None:
        """The floats back to the nearest numbers."""
        self.parameter.copy_(self.floats)


def _copy_options(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    """Rates and the like, which schedulers write to the groups that users see."""
    for given, taken in zip(source, target, strict=True):
        taken.update({name: value for name, value in given.items() if name != "params"})


def _pair(entry: Any) -> tuple[nn.Parameter, Tensor | None]:
    """(parameter, scale or None) of one of ``parameters``, checked."""
    parameter, scale = entry if isinstance(entry, tuple) else (entry, None)
    if not isinstance(parameter, Tensor):
        raise TypeError(
            "FP8Optimizer: parameters: expected parameters and pairs (parameter, scale), got "
            f"{type(parameter).__name__}"
        )
    if (parameter.dtype == E4M3) != (scale is not None):
        raise TypeError(
            "FP8Optimizer: parameters: expected pairs (parameter, scale) of the float8_e4m3fn "
            f"parameters and of no others, got one of {parameter.dtype} "
            f"with {'no' if scale is None else 'a'} scale"
        )
    if scale is not None:
        *lead, rows, columns = parameter.shape
        expected = [*lead, blocks(rows), blocks(columns)]
        if list(scale.shape) != expected or scale.dtype not in (torch.float32, E8M0):
            raise ValueError(
                f"FP8Optimizer: parameters: expected a scale {expected}, float32 or "
                f"float8_e8m0fnu, of a parameter {list(parameter.shape)}, got {scale.dtype} "
                f"{list(scale.shape)}"
            )
    return cast(nn.Parameter, parameter), scale
