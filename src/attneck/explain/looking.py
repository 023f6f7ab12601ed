"""What models look at in a photo, as a picture: BAM over the stages, attention from a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attneck.explain.photo import Window
from attneck.explain.scale import ends
from attneck.explain.seeing import BAMMaps, Maps, MHSAMaps, gain_of
from attneck.explain.sheet import Column, Place, Table, Tile, sheet, wrapped

Values = NDArray[np.floating]

MOST = 14
"""Letters of a line of a module's name."""
MAGNITUDE, WEIGHT = "mean |x|", "weight"


@dataclass(frozen=True)
class Look:
    """What one model sees in the photo.

    Attributes:
        title: the model's.
        lines: what is said beside the photo.
        cam: its class and Grad-CAM [H, W], where it was asked for.
    """

    title: str
    lines: Sequence[str]
    maps: Maps
    window: Window
    cam: tuple[str, Values] | None = None


def picture(
    photo: Image.Image,
    looks: Sequence[Look],
    places: Sequence[Place],
    *,
    tables: bool = False,
    dark: bool = False,
) -> Figure:
    """Models beside each other, or under each other where that would be too wide.

    Args:
        photo: upright, as it was prepared for the models.
        places: those that attention is shown from.
        tables: the learned positions too.
        dark: on a dark page.
    """
    return sheet(photo, [_column(look, places, tables) for look in looks], dark=dark)


def _column(look: Look, places: Sequence[Place], tables: bool) -> Column:
    found, drawn = look.maps, []
    if look.cam is not None:
        name, values = look.cam
        tile = _scaled(values, "gradient × map", look.window)
        drawn.append(Table(f"Grad-CAM: {name}", [""], [""], [[tile]], 2.0))
    if found.bams:
        drawn.append(_of_bams(found.bams, look.window))
    if found.mhsas:
        for number, place in enumerate(places, start=1):
            name = f"place {number}" if len(places) > 1 else "the marked place"
            heading = f"Self-attention from {name}, {place.name}"
            drawn.append(_of_mhsas(found.mhsas, look.window, place, heading))
    with_tables = [layer for layer in found.mhsas if layer.tables]
    if tables and with_tables:
        drawn.append(_of_tables(with_tables))
    return Column(look.title, look.lines, look.window, places if found.mhsas else [], drawn)


def _of_bams(bams: Sequence[BAMMaps], window: Window) -> Table:
    """A row a module, from the first stage to the last, with what BAM's Figure 1 shows of each."""
    return Table(
        "BAM: what comes in, where it looks, what goes out",
        [_name(one) for one in bams],
        ["before", "M_s\nspatial branch", "M\nmean of channels", "after"],
        [_of_bam(one, window) for one in bams],
    )


def _of_bam(one: BAMMaps, window: Window) -> list[Tile | None]:
    """Its row; what comes in and what goes out have one scale."""
    before, after = _array(one.before), _array(one.after)
    limits = ends(MAGNITUDE, window.shown(before), window.shown(after))
    return [
        Tile(before, MAGNITUDE, window, limits),
        None if one.spatial is None else _scaled(_array(one.spatial), "logit", window),
        _scaled(_array(one.attention.mean(0)), "gate", window),
        Tile(after, MAGNITUDE, window, limits),
    ]


def _scaled(values: Values, unit: str, window: Window, **style: Any) -> Tile:
    """A tile with the scale of its unit."""
    limits = ends(unit, window.shown(values), places=values.size)
    return Tile(values, unit, window, limits, **style)


def _of_mhsas(layers: Sequence[MHSAMaps], window: Window, place: Place, heading: str) -> Table:
    """A row a layer: the mean of the heads, each head, and the mean of each term alone."""
    heads = max(layer.heads for layer in layers)
    columns = ["all heads, mean", *(f"head {number}" for number in range(1, heads + 1))]
    columns += ["content alone", "position alone"]
    rows, names = [], []
    for layer in layers:
        cell = window.cell(place.x, place.y, layer.map_size)
        if cell is None:
            raise ValueError(f"the place {place.name} lies outside what the model sees of the photo")
        away = layer.distance()

        def tile(weights: Tensor, note: str = "", cell: tuple[int, int] = cell) -> Tile:
            return _scaled(_array(weights), WEIGHT, window, cell=cell, note=note)

        row = layer.row(*cell)  # [h, H, W]
        tiles: list[Tile | None] = [tile(row.mean(0), _away(away.mean()))]
        tiles += [tile(one, _away(far)) for one, far in zip(row, away, strict=True)]
        tiles += [None] * (heads - layer.heads)
        tiles.append(tile(layer.row(*cell, "content").mean(0)) if layer.keys is not None else None)
        tiles.append(tile(layer.row(*cell, "position").mean(0)) if layer.tables else None)
        rows.append(tiles)
        names.append(_name(layer))
    return Table(heading, names, columns, rows)


def _of_tables(layers: Sequence[MHSAMaps]) -> Table:
    """Learned positions, a column a layer: down the offsets (or places) of an axis, across the width."""
    drawn = []
    for layer in layers:
        tiles = []
        for table, side in zip(layer.tables, layer.map_size, strict=True):
            last = side - 1
            ticks = (f"−{last}", "0", f"+{last}") if layer.position == "relative" else ("0", "", str(last))
            tiles.append(Tile(_array(table), "value", ticks=ticks))
        drawn.append(tiles)
    by = "place" if all(layer.position == "absolute" for layer in layers) else "offset"
    heading = "Learned positions (down: places of the map; across: the head's width)"
    names = [f"rows,\nby {by}", f"columns,\nby {by}"]
    columns = [_name(layer) for layer in layers]
    return Table(heading, names, columns, [*zip(*drawn, strict=True)], aspect=1.0)


def _name(one: BAMMaps | MHSAMaps) -> str:
    H, W = one.map_size
    again = f"\npass {one.call}" if one.call > 1 else ""
    gain = f"\ngain {gain_of(one)}" if isinstance(one, BAMMaps) and one.gain is not None else ""
    return f"{wrapped(one.name or 'the model', MOST)}\n{H} × {W}{gain}{again}"


def _away(distance: Tensor) -> str:
    return f"mean {float(distance):.0f} px away"


def _array(values: Tensor) -> Values:
    found: Values = values.detach().float().cpu().numpy()
    return found
