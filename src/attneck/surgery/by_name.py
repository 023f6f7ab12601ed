"""Surgeries as a recipe or a command line names them, with their arguments.

One is its function's name. Several are joined by + and done in that order, and each option is then named with
its function: `attend+insert_bam`, `insert_bam.reduction`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from attneck import surgery
from attneck.errors import suggestion
from attneck.surgery.adopt import Adoption
from attneck.surgery.report import Report


def parted(names: str, options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each function's name, and its own options."""
    if "+" not in names:
        return [(names, dict(options))]
    return [
        (name, {key.removeprefix(start): value for key, value in options.items() if key.startswith(start)})
        for name in names.split("+")
        for start in [f"{name}."]
    ]


def operate(
    model: nn.Module, names: str, options: Mapping[str, Any], image_size: int | tuple[int, int]
) -> tuple[Report | Adoption, ...]:
    """Change `model` in place by the functions of `attneck.surgery` that `names` has; a report of each.

    Raises:
        ValueError: an option that they do not have; one of several that would change nothing; what they
            refuse.
    """
    several = "+" in names
    takes = {name: inspect.signature(getattr(surgery, name)).parameters.keys() for name in names.split("+")}
    wanted = [
        f"{name}.{option}" if several else option
        for name, arguments in takes.items()
        for option in sorted(arguments - {"model", "image_size"})
    ]
    for option in options:
        if option not in wanted:
            raise ValueError(
                f"{names} has no option {option!r}{suggestion(option, wanted)} "
                f"(there are {', '.join(wanted) or 'none'})"
            )
    reports: list[Report | Adoption] = []
    for name, own in parted(names, options):
        for_size = {"image_size": image_size} if "image_size" in takes[name] else {}
        report = getattr(surgery, name)(model, **for_size, **own).report
        if several and not report.changes:
            raise ValueError(
                f"{names}: {name} would change nothing, as all attention there is attneck's by then: leave "
                "it out"
            )
        reports.append(report)
    return tuple(reports)
