"""What timm says of a network's maps, `feature_info`, where surgery has made some of them larger."""

from __future__ import annotations

from typing import Any

from torch import nn

from attneck.surgery.trace import Trace


def correct_reductions(network: nn.Module, before: Trace, after: Trace) -> None:
    """Give each entry of `feature_info` the reduction that its map has now."""
    info: Any = getattr(network, "feature_info", None)
    entries: list[dict[str, Any]] = getattr(info, "info", info) or []
    indices: tuple[int, ...] = getattr(info, "out_indices", ())
    if len(before.steps[0].outputs) == len(indices):  # an extractor: they are its results, in that order
        entries = [entries[index] for index in indices]
        was, now = ([(number,) for number in of.steps[0].outputs] for of in (before, after))
    else:  # a network, or an extractor that listens by hooks, which no trace has
        was, now = (_made(entries, of) for of in (before, after))
    for entry, old, new in zip(entries, was, now, strict=True):
        level, larger = before.coarsest(old), after.coarsest(new)
        if level is not None and larger is not None:
            entry["reduction"] >>= level - larger


def _made(entries: list[dict[str, Any]], of: Trace) -> list[Any]:
    """What the module of each entry gives, nothing where it is not called; extractors rename modules."""
    made = {step.name: step.outputs for step in of.calls()}
    ways = [(name, name.replace(".", "_"), f"body.{name}") for name in (each["module"] for each in entries)]
    return [next((made[name] for name in names if name in made), ()) for names in ways]
