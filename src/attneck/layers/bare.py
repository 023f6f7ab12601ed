"""Which layers may be computed without being called; and copies of networks."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

from attneck.attention.graph import constant
from attneck.errors import one_line

Kind = TypeVar("Kind", bound=nn.Module)

CALLED = {"forward", "_conv_forward"}
"""Methods by which a layer's call computes."""


def is_bare(layer: nn.Module | None, kind: type[Kind]) -> TypeGuard[Kind]:
    """True for a layer of this very type that nobody replaced, wrapped or listens to.

    Its result may then be computed by other code from its weights. Anything else has to be called as the
    module that it is: a quantized, parametrized or adapted layer, and a layer with hooks, those of counters
    and FSDP among them.
    """
    return (
        type(layer) is kind
        and not CALLED & vars(layer).keys()
        and _as_defined(kind)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not _heard_everywhere()
    )


@constant
def _as_defined(kind: type[nn.Module]) -> bool:
    """Whether a call runs what the class's own module defines, which some tools replace for all layers."""
    convolves = getattr(kind, "_conv_forward", kind.forward)
    return _is_of(kind.forward, kind.__module__) and _is_of(convolves, kind.__module__)


@lru_cache(64)  # asked in each forward pass, several times
def _is_of(method: Callable[..., object], module: str) -> bool:
    return getattr(method, "__globals__", {}).get("__name__") == module


def is_own(layer: nn.Module, kind: type[Kind], *names: str) -> TypeGuard[Kind]:
    """True for a layer of this type or a derived one, whose methods of these names are this type's own."""
    return isinstance(layer, kind) and all(
        name not in vars(layer) and getattr(type(layer), name) is getattr(kind, name) for name in names
    )


def _heard_everywhere() -> bool:
    """True while a hook listens to all modules.

    torch's own `_has_any_global_hook` stays True for ever after one that was given keywords is removed.
    """
    return bool(
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


def is_bare_pointwise(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """`is_bare` for an ordinary 1x1 convolution."""
    return is_bare(layer, nn.Conv2d) and (
        (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)
    )


def copied(model: Kind) -> Kind:
    """A deep copy of it; ValueError where there is none to make."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # torch's old weight_norm, a lock, a model that is sharded
        raise ValueError(
            f"no copy can be made of this {type(model).__name__} ({type(error).__name__}: "
            f"{one_line(error, 150)}): give the network itself, without what computes its weights in hooks"
        ) from error
