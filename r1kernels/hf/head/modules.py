"""What a head may be made of: a plain Linear, and what peft puts around it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from r1kernels.hf.head.float32_head import Float32Head


class Adapter(NamedTuple):
    """LoRA: adds up(down(dropout(x)))·scaling to what the Linear makes of x."""

    down: nn.Linear
    dropout: nn.Module
    scaling: float
    up: nn.Linear

    def rows(self, hidden: Tensor) -> Tensor:
        return self.down(self.dropout(hidden.to(self.down.weight.dtype))) * self.scaling


def open_head(head: nn.Module) -> tuple[nn.Linear, tuple[Adapter, ...]]:
    """The Linear of output embeddings, and the LoRA adapters that are active on it.

    Raises:
        NotImplementedError: the head is, or carries, something that would not be honoured.
    """
    adapters: tuple[Adapter, ...] = ()
    if type(head).__module__.startswith("peft."):
        head, adapters = _open_peft(head)
    known = (nn.Linear.forward, Float32Head.forward)
    if not isinstance(head, nn.Linear) or type(head).forward not in known:
        raise _refusal("a plain nn.Linear", _path(head))
    _check_untouched(head)
    if not head.weight.is_floating_point():
        raise _refusal("a floating-point weight", head.weight.dtype)
    return head, adapters


def _open_peft(head: Any) -> tuple[nn.Module, tuple[Adapter, ...]]:
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    _check_untouched(head)
    if type(head) is ModulesToSaveWrapper:
        if head.disable_adapters or not head.active_adapters:
            return head.original_module, ()
        return head.modules_to_save[head.active_adapters[0]], ()
    if type(head) is not LoraLinear:
        raise _refusal("peft's LoRA or modules_to_save around an nn.Linear", _path(head))
    if head.merged:
        if head.disable_adapters:
            raise _refusal("adapters that are merged or disabled, not both", "both")
        return head.base_layer, ()
    if head.disable_adapters:
        return head.base_layer, ()
    adapters = []
    for name in head.active_adapters:
        if name not in head.lora_A:
            continue
        if name in head.lora_variant:
            raise _refusal("plain LoRA", f"{_path(head.lora_variant[name])} in adapter {name!r}")
        if head.lora_bias[name]:
            raise _refusal("LoRA without a bias", f"lora_bias=True in adapter {name!r}")
        down, up = head.lora_A[name], head.lora_B[name]
        assert isinstance(down, nn.Linear)
        assert isinstance(up, nn.Linear)
        adapters.append(Adapter(down, head.lora_dropout[name], head.scaling[name], up))
    return head.base_layer, tuple(adapters)


def _check_untouched(head: nn.Module) -> None:
    if "forward" in vars(head):
        raise _refusal("the forward of its class", "a forward of its own")
    if head._forward_pre_hooks or head._forward_hooks or head._backward_hooks:
        raise _refusal("no hooks, which would not run", "a module with hooks")


def _path(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _refusal(expected: str, got: Any) -> NotImplementedError:
    return NotImplementedError(f"head_of: get_output_embeddings(): expected {expected}, got {got}")
