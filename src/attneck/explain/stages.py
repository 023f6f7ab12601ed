"""A network as a row of stages: what map leaves each, what it costs, and what attention is in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from torch import nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.layers.ungated import UngatedBAM
from attneck.measure.counts import check_apart, madds_by_name
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace, trace

ATTENTION: dict[type[nn.Module], str] = {
    BAM: "BAM",
    UngatedBAM: "ungated",
    MHSA2d: "MHSA",
    NonLocal2d: "non-local",
    SqueezeExcite2d: "SE",
}
WRAPPERS = ("backbone", "body", "trunk", "encoder")
"""Names of modules that hold a whole network, whose stages are shown in their place."""


@dataclass(frozen=True)
class Stage:
    """A part of a network.

    Attributes:
        name: its module's; "stem" and "head" are what comes before and after the stages.
        channels: of the map that leaves it; or of the vector.
        map_size: (H, W) of that map; None where it is a vector, or more than one map.
        blocks: how many blocks it has; 0 where it has none.
        params: parameters.
        madds: multiply-adds for one image.
        attention: how many of which, by their short names.
        some: of those that some of its blocks have and others lack, the numbers of these blocks, from 1 on.
        between: of those that stand between its blocks, the numbers of the blocks before them.
    """

    name: str
    channels: int | None
    map_size: tuple[int, int] | None
    blocks: int
    params: int
    madds: int
    attention: dict[str, int]
    some: dict[str, list[int]] = field(default_factory=dict)
    between: dict[str, list[int]] = field(default_factory=dict)


def stages(model: nn.Module, image_size: tuple[int, int]) -> list[Stage]:
    """The stages in the order in which they run, on an image of (height, width) pixels.

    The model stays as it is, and none of its weights is read.

    Raises:
        ValueError: as `attneck.surgery.trace.trace`; parts that share parameters.
    """
    seen = trace(model, image_size)
    model = seen.skeleton
    calls = {step.name: step for step in sorted(seen.calls(), key=lambda step: step.end)}
    madds = madds_by_name(model, image_size)
    root = type(model).__name__

    def cost(name: str) -> int:
        if (known := madds.get(f"{root}.{name}")) is not None:
            return known
        return sum(cost(f"{name}.{key}") for key, _ in model.get_submodule(name).named_children())

    parts = _parts(model, [*calls])
    first = next((at for at, name in enumerate(parts) if _is_stage(model.get_submodule(name))), len(parts))
    last = max((at for at, name in enumerate(parts) if _is_stage(model.get_submodule(name))), default=-1)
    grouped: dict[str, list[str]] = {}
    where = ""
    for at, name in enumerate(parts):
        if at < first:
            where = "stem"
        elif at > last:
            where = "head"
        elif _is_stage(model.get_submodule(name)):
            where = name
        grouped.setdefault(where, []).append(name)  # what is no stage belongs to the one before it
    check_apart({name: model.get_submodule(name) for names in grouped.values() for name in names})
    rows: list[Stage] = []
    for where, names in grouped.items():
        modules = [model.get_submodule(name) for name in names]
        channels, map_size = _map(
            seen, [seen.steps[0]] if where == "head" else [calls[name] for name in names]
        )
        rows.append(
            Stage(
                where,
                channels,
                map_size,
                sum(len(_blocks(module)) for module in modules),
                sum(parameter.numel() for module in modules for parameter in module.parameters()),
                sum(map(cost, names)),
                dict(sum((Counter(_attention(module)) for module in modules), Counter())),
                {kind: numbers for module in modules for kind, numbers in _some(module).items()},
                {kind: numbers for module in modules for kind, numbers in _between(module).items()},
            )
        )
    rows = [row for row in rows if row.params or row.madds]
    if rows:  # parameters of the network itself, position tables say
        all_of = sum(parameter.numel() for parameter in model.parameters())
        rest = all_of - sum(row.params for row in rows), madds["Global"] - sum(row.madds for row in rows)
        rows[0] = replace(rows[0], params=rows[0].params + rest[0], madds=rows[0].madds + rest[1])
    return rows


def _map(seen: Trace, calls: list[Step]) -> tuple[int | None, tuple[int, int] | None]:
    """The `channels` and `map_size` of what these calls give, one after another; None where it is several."""
    made: tuple[int, ...] = ()
    for call in calls:
        follows = len(made) == 1 and not seen.is_made_without(call.inputs, made[0])
        made = call.outputs if not made or follows or {*made} <= {*call.inputs} else made + call.outputs
    if len({*made}) != 1:
        return None, None
    shape, axis = seen.shapes[made[0]], seen.axes[made[0]]
    if len(shape) < 4:
        return (shape[-1] if len(shape) > 1 else None), None
    if len(shape) > 4 or axis is None:
        return None, None
    height, width = (side for at, side in enumerate(shape) if at not in (0, axis))
    return shape[axis], (height, width) if height * width > 1 else None


def _attention(module: nn.Module) -> dict[str, int]:
    """How many of which; the BAM of whose branches an ungated one is made is none."""
    inner = {one.branches for one in module.modules() if isinstance(one, UngatedBAM)}
    kinds = (ATTENTION.get(type(one)) for one in module.modules() if one not in inner)
    return dict(Counter(kind for kind in kinds if kind is not None))


def _some(module: nn.Module) -> dict[str, list[int]]:
    """The numbers of the blocks that have a kind of attention, where not all have it."""
    inside = [_attention(block) for block in _blocks(module)]
    found = {
        kind: [number for number, one in enumerate(inside, start=1) if kind in one]
        for kind in dict.fromkeys(kind for one in inside for kind in one)
    }
    return {kind: numbers for kind, numbers in found.items() if len(numbers) < len(inside)}


def _between(module: nn.Module) -> dict[str, list[int]]:
    """The numbers of the blocks that attention stands after, in the row of blocks; not the last."""
    found: dict[str, list[int]] = {}
    blocks = _blocks(module)
    before = 0
    for child in module.children() if blocks else ():
        if child in blocks:
            before += 1
        elif before < len(blocks) and (kind := ATTENTION.get(type(child))) is not None:
            found.setdefault(kind, []).append(before)
    return found


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Those of a row of blocks."""
    if not isinstance(module, nn.Sequential):
        return []
    return [child for child in module.children() if type(child) not in ATTENTION and _is_stage(child)]


def _parts(model: nn.Module, ran: list[str]) -> list[str]:
    """The modules that the network is a row of, in the order in which they first ran."""

    place = {name: at for at, name in enumerate(ran)}

    def children(name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        inside = [prefix + key for key, _ in model.get_submodule(name).named_children()]
        # A list of modules does not run itself, the modules in it do.
        found = [part for one in inside for part in ([one] if one in place else children(one))]
        return sorted(found, key=place.__getitem__)

    parts = children("")
    while True:
        wide = [name for name in parts if _is_stage(model.get_submodule(name))]
        open_ = next((name for name in wide if name.rpartition(".")[2] in WRAPPERS), None)
        if open_ is None and len(wide) == 1:
            open_ = wide[0]
        within = children(open_) if open_ is not None else []
        if open_ is None or sum(_is_stage(model.get_submodule(name)) for name in within) < 2:
            return parts
        at = parts.index(open_)
        parts[at : at + 1] = within


def _is_stage(module: nn.Module) -> bool:
    """Whether more than one convolution is in it."""
    return sum(isinstance(one, nn.Conv2d | nn.Linear) for one in module.modules()) > 1
