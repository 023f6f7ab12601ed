"""A network as a row of stages: what map leaves each, what it costs, and what attention is in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.layers.meta import check_module, meta_copy
from attneck.layers.ungated import UngatedBAM
from attneck.measure.counts import madds_by_name

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
        ValueError: what is no model, or an image that it does not run on.
    """
    check_module(model)
    model = meta_copy(model).eval()
    shapes: dict[str, tuple[int, ...] | None] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            shapes.setdefault(name, None)  # where it first ran is its place
            shapes[name] = tuple(result.shape) if isinstance(result, Tensor) else None

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    madds = madds_by_name(model, image_size)
    root = type(model).__name__

    def cost(name: str) -> int:
        if (known := madds.get(f"{root}.{name}")) is not None:
            return known
        return sum(cost(f"{name}.{key}") for key, _ in model.get_submodule(name).named_children())

    rows: list[Stage] = []
    parts = _parts(model, list(shapes))
    first = next((at for at, name in enumerate(parts) if _is_stage(model.get_submodule(name))), len(parts))
    last = max((at for at, name in enumerate(parts) if _is_stage(model.get_submodule(name))), default=-1)
    for at, name in enumerate(parts):
        module = model.get_submodule(name)
        where = "stem" if at < first else "head" if at > last else name
        shape = shapes.get(name)
        stage = Stage(
            where,
            None if not shape or len(shape) < 2 else shape[1] if len(shape) == 4 else shape[-1],
            (shape[2], shape[3]) if shape and len(shape) == 4 and shape[2] * shape[3] > 1 else None,
            len(_blocks(module)),
            sum(parameter.numel() for parameter in module.parameters()),
            cost(name),
            _attention(module),
            _some(module),
            _between(module),
        )
        if rows and (rows[-1].name == where or (first < at < last and not _is_stage(module))):
            stage = _joined(rows.pop(), stage)
        rows.append(stage)
    rows = [row for row in rows if row.params or row.madds]
    if rows:  # parameters of the network itself, position tables say
        all_of = sum(parameter.numel() for parameter in model.parameters())
        rest = all_of - sum(row.params for row in rows), madds["Global"] - sum(row.madds for row in rows)
        rows[0] = replace(rows[0], params=rows[0].params + rest[0], madds=rows[0].madds + rest[1])
    return rows


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


def _joined(one: Stage, other: Stage) -> Stage:
    """Two that follow each other, under the first one's name."""
    return Stage(
        one.name,
        one.channels if other.channels is None else other.channels,
        other.map_size if other.channels is not None else one.map_size,
        one.blocks + other.blocks,
        one.params + other.params,
        one.madds + other.madds,
        dict(Counter(one.attention) + Counter(other.attention)),
    )
