"""Classifiers of timm's by their name, made for images of a size that they may not have by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attneck.errors import one_line, suggestion
from attneck.layers.modes import evaluating
from attneck.models.origin import FETCHING

Options = dict[str, Any]


def of_timm(
    name: str, num_classes: int, options: Options, size: tuple[int, int], *, resized_later: bool
) -> tuple[nn.Module, Options]:
    """A network of timm's for images of `size` (height, width) in pixels, and the options that made it.

    One that takes images of its own size alone, as a vision transformer does, is made for `size` by timm's
    `img_size`, if it has that.

    Args:
        resized_later: make it for its own size all the same: what comes after takes any.

    Raises:
        ValueError: timm has no such model, it does not take the options, or not images of `size`.
    """
    import timm

    network = made(name, options, num_classes=num_classes)
    found: Any = timm.get_pretrained_cfg(name)
    if resized_later or not getattr(found, "fixed_input_size", False) or tuple(found.input_size[1:]) == size:
        return network, options
    fault = _fault(network, size)
    if fault is None:
        return network, options
    if "img_size" not in options:
        fitted = {**options, "img_size": list(size)}
        try:
            network = made(name, fitted, num_classes=num_classes)
        except ValueError:  # it has no such option
            pass
        else:
            if _fault(network, size) is None:
                return network, fitted
    raise ValueError(
        f"timm's {name} does not take images of {size[0]}x{size[1]} pixels ({fault}): give data.image_size "
        f"{options.get('img_size', found.input_size[-1])}, which it is made for, or another network"
    )


def made(name: str, options: Options, **asked: Any) -> nn.Module:
    """A network of timm's, without weights of anybody's, with `options` and what else is `asked` for.

    Raises:
        ValueError: timm has no such model, or it does not take the options; options that fetch weights, or
            are asked for already.
    """
    import timm

    if fetched := FETCHING & options.keys():
        raise ValueError(
            f"model.options {', '.join(sorted(fetched))}: a model's options say how it is made, not where "
            "its weights are; give model.pretrained NAME for timm's, or model.weights FILE"
        )
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggestion(name, timm.list_models())}")
    try:
        network: nn.Module = timm.create_model(name, **asked, **options)
    except Exception as error:  # its own checks are of every kind
        raise ValueError(f"timm does not make {name} with {options} ({one_line(error)})") from error
    return network


def _fault(network: nn.Module, size: tuple[int, int]) -> str | None:
    """What is said where a blank image of `size` does not go through; nothing of the network changes."""
    try:
        with evaluating(network), torch.inference_mode():
            network(torch.zeros(1, 3, *size))
    except Exception as error:  # timm's own checks, or whatever an operation says of shapes
        return one_line(error, 100)
    return None
