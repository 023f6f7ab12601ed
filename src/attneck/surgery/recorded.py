"""What surgery was done on a model, kept with it: by this `attneck.hub.save` says how to make it again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Surgery(NamedTuple):
    """One function of `attneck.surgery`, as it was called."""

    name: str
    options: dict[str, Any]
    image_size: tuple[int, int] | None
    """(height, width) in pixels that it was done for; None where it needs none."""


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """The function, after which the model's attribute `surgeries` has the call too."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def operate(*args: P.args, **kwargs: P.kwargs) -> R:
        import torch

        # Tensors that are made in inference mode can never be trained.
        inferring = torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inferring else nullcontext():
            result: Any = function(*args, **kwargs)
        options = dict(signature.bind(*args, **kwargs).arguments)
        model: Any = options.pop("model")
        from attneck.surgery.trace import is_pefts

        if is_pefts(model) and hasattr(model, "get_base_model"):  # merging leaves the network inside
            model = model.get_base_model()
        options.pop("image_size", None)
        size = getattr(result.report, "image_size", None)
        if result.report.changes:  # there was something to adopt
            model.surgeries = (*done_on(model), Surgery(function.__name__, options, size))
        return result

    return operate


def done_on(model: Any) -> tuple[Surgery, ...]:
    """What was done on a model, in that order."""
    return getattr(model, "surgeries", ())
