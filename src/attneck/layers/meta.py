"""A copy of a model for questions about shapes: no storage, no hooks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

from attneck.checks import sides
from attneck.errors import brief, one_line

HOOKS = [name for name, value in vars(nn.Module()).items() if "_hooks" in name and isinstance(value, dict)]
"""The attributes of a module that hold its hooks, and flags by hook."""

GLOBAL_HOOKS: list[dict[int, Any]] = [
    value
    for name, value in vars(of_torch).items()
    if name.startswith("_global_") and "_hooks" in name and isinstance(value, dict)
]
"""The tables of those that torch calls for all modules."""


def check_module(model: object) -> None:
    """ValueError unless it is a network; a name of one is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model={brief(model)}: wanted a torch.nn.Module, such as attneck.create_model('botnet50')"
        )


def likely_channels(model: nn.Module) -> list[int]:
    """How many channels its images may have, the likeliest first: what it says, its first convolution's, 3.

    That convolution may see the image folded (TResNet).
    """
    origin = getattr(model, "origin", None)
    said = [origin.in_chans] if origin else []
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return list(dict.fromkeys([*said, first, 3]))


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` whose tensors have shapes and no storage; nothing is allocated on the way.

    The copy has no hooks, of any kind: a hook is somebody's code, and would be given tensors without values.
    The weight that torch's old `weight_norm`, `spectral_norm` or a pruning computes in a hook is in the copy
    as a tensor of its shape.

    Raises ValueError for a model that cannot be copied.
    """
    modules = list(model.modules())
    held = [tensor for module in modules for value in vars(module).values() for tensor in _tensors_of(value)]
    memo: dict[int, Any] = {}
    # Left out, not copied and then removed: what a hook holds may be large, or no copy may be made of it.
    tables = [vars(module)[name] for module in modules for name in HOOKS if name in vars(module)]
    memo |= {id(table): OrderedDict() for table in tables}
    try:
        for tensor in held:
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            memo[id(tensor)] = (
                nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
            )
        return copy.deepcopy(model, memo)
    except Exception as error:  # what it holds may forbid it in any way: a lock, a quantized weight
        raise ValueError(
            f"no copy can be made of this {type(model).__name__} to look at ({type(error).__name__}: "
            f"{one_line(error, 150)}): give the network itself, before it is quantized, sharded or given "
            "anything else"
        ) from error


def _tensors_of(value: object) -> list[Tensor]:
    """Those that an attribute is, or has: parameters and buffers are in dictionaries too."""
    held = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    )
    return [one for one in held if isinstance(one, Tensor)]


def check_logits(model: nn.Module, image_size: int | tuple[int, int], classes: int) -> None:
    """ValueError unless the model makes `classes` logits of an RGB image of that side, or (height, width).

    What does not run without storage for a reason of its own is let through.
    """
    height, width = sides("image_size", image_size)
    image = torch.empty(2, 3, height, width, device="meta")
    try:
        with shapes_alone():
            found = meta_copy(model).eval()(image)
    except NotImplementedError:
        return
    except Exception as error:  # a network asserts, or PyTorch finds shapes that do not fit
        if "meta" in str(error):
            return
        raise ValueError(
            f"this {type(model).__name__} does not take RGB images of {height}×{width} "
            f"({one_line(error, 150)}): give another size (data.image_size, image_sizes), or take "
            "back the model.options"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2, classes):
        given = list(found.shape[1:]) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"this {type(model).__name__} gives {given} for an image, wanted {classes} logits: leave the "
            "model.options out that make it so"
        )


@contextmanager
def shapes_alone(*, makes_tensors: bool = False) -> Iterator[None]:
    """What a copy of `meta_copy` is run in: no gradients, and no hooks that are for all modules.

    Args:
        makes_tensors: whether what its forward makes, a grid of coordinates say, is without storage as well;
            else it has its values, which a forward may look at.
    """
    with (
        torch.no_grad(),
        without_global_hooks(),
        torch.device("meta") if makes_tensors else nullcontext(),
    ):
        yield


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Inside it no hook runs that was registered for all modules; afterwards they are there again."""
    tables = [(table, dict(table)) for table in GLOBAL_HOOKS]
    for table, _ in tables:
        table.clear()
    try:
        yield
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
