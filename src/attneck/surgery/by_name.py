"""A surgery as a recipe or a command line names it, with its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from attneck import surgery
from attneck.errors import suggestion
from attneck.surgery.adopt import Adopted
from attneck.surgery.report import Result


def operate(
    model: nn.Module, name: str, options: Mapping[str, Any], image_size: int | tuple[int, int]
) -> Result | Adopted:
    """What the function `name` of `attneck.surgery` returns; ValueError for an option that it has not."""
    function: Any = getattr(surgery, name)
    arguments = inspect.signature(function).parameters.keys()
    wanted = sorted(arguments - {"model", "image_size"})
    for option in options:
        if option not in wanted:
            raise ValueError(
                f"{name} has no option {option!r}{suggestion(option, wanted)} "
                f"(there are {', '.join(wanted) or 'none'})"
            )
    for_size = {"image_size": image_size} if "image_size" in arguments else {}
    result: Result | Adopted = function(model, **for_size, **options)
    return result
