"""The part of a report that shows a few of the scored images as training went on."""

from __future__ import annotations

from collections.abc import Sequence

from attneck.explain.inline import heat, scale
from attneck.explain.scale import ends, span, told
from attneck.runs.report.html import Html, join, scrolling, tag
from attneck.runs.snapshots import GRID, Layer, Look, Snapshot

BESIDE = 4
"""Columns up to which two images stand beside each other."""
WORDS = {
    "BAM": "BAM: its attention M, the mean over its channels. Under it, its least and its greatest value.",
    "MHSA": "MHSA: where the place in the circle attends to, the mean over the heads. Under it, over how "
    "many places of the map these weights are spread (the exponential of their entropy).",
}
COLOURS = (
    "A row has one scale over all its columns, whose ends stand beside it: M's goes from 0 to 1, that of "
    "weights from 0 to the greatest, or to twice an even weight: even attention has the middle colour. The "
    f"place is the part of the image, one of {GRID}×{GRID}, that differs most from its mean."
)


def attention(snapshots: Sequence[Snapshot], what: str) -> Html | None:
    """Each image with a column for each snapshot and a row for each layer; None without snapshots.

    what: the images that the run is scored on, in words.
    """
    if not snapshots:
        return None
    count = len(snapshots[-1].looks)
    alike = [snapshot for snapshot in snapshots if len(snapshot.looks) == count]
    kinds = {layer.kind for look in snapshots[-1].looks for layer in look.layers}
    said = [f"The same {what} before training, and after some of its scorings."]
    said += [WORDS[kind] for kind in WORDS if kind in kinds]
    said += [COLOURS if kinds else "The network has no BAM and no MHSA: there is no attention to show."]
    colours = tag("img", src=scale(), alt="colours from dark to light", class_="scale")
    return tag(
        "section",
        tag("h2", "What it looks at, and what it says" if kinds else "What it says"),
        *(tag("p", sentence) for sentence in said),
        tag("p", "the scale's least ", colours, " its greatest", class_="quiet") if kinds else None,
        tag(
            "div",
            *(_image(number, alike) for number in range(count)),
            class_="images" if len(alike) <= BESIDE else None,
        ),
        id="attention",
    )


def _image(number: int, snapshots: Sequence[Snapshot]) -> Html:
    looks = [snapshot.looks[number] for snapshot in snapshots]
    last = looks[-1]
    heads = ["", *("before training" if one.step == 0 else f"step {one.step:,}" for one in snapshots)]
    rows = [
        tag("tr", tag("th", "says", scope="row"), *(tag("td", _said(look), class_="says") for look in looks))
    ]
    names = [(layer.kind, layer.name) for layer in last.layers]
    for kind, name in names:
        found = [_layer(look, kind, name) for look in looks]
        there = [layer for layer in found if layer is not None]
        H, W = there[-1].size
        unit = "gate" if kind == "BAM" else "weight"
        low, high = ends(unit, *(layer.values for layer in there), places=H * W)
        cells = [
            tag("td") if layer is None else _cell(look, layer, low, high, f"image {number + 1}, {head}")
            for look, layer, head in zip(looks, found, heads[1:], strict=True)
        ]
        limits = "\u00a0to\u00a0".join(told(low, high))
        at_dots = name.replace(".", ".\u200b")  # where a long name may be broken
        lines = (tag("small", words) for words in (at_dots, f"{H}×{W}", f"scale {limits}"))
        label = tag("th", kind, *lines, scope="row")
        rows.append(tag("tr", label, *cells))
    wide, high_ = last.size
    small = " pixels" if max(last.size) <= 64 else ""
    caption = tag(
        "caption",
        tag(
            "span",
            "",
            class_="photo",
            style=f"aspect-ratio:{wide}/{high_}",
            role="img",
            aria_label=f"image {number + 1}",
        ),
        tag("span", f"Image {number + 1}: ", tag("b", last.truth)),
    )
    return scrolling(
        caption,
        heads,
        rows,
        f"Image {number + 1} as training went on",
        class_=f"scroll looks{small}",
        style=f"--photo:url({last.picture})",
    )


def _said(look: Look) -> Html:
    if not look.said:
        return Html("–")
    rows = [tag("span", name, " ", tag("b", f"{score:.2f}")) for name, score in look.said]
    return join(rows)


def _layer(look: Look, kind: str, name: str) -> Layer | None:
    return next((layer for layer in look.layers if (layer.kind, layer.name) == (kind, name)), None)


def _cell(look: Look, layer: Layer, low: float, high: float, where: str) -> Html:
    wide, high_ = look.size
    if layer.places is None:
        words = span(layer.values)
    else:
        words = f"{layer.places:.1f} of {layer.size[0] * layer.size[1]:,}"
    x, y = look.place
    mark = tag("i", style=f"left:{100 * x:.1f}%;top:{100 * y:.1f}%") if layer.places is not None else None
    return tag(
        "td",
        tag(
            "div",
            tag("img", src=heat(layer.values, low, high), alt=f"{where}: {layer.kind} {layer.name}, {words}"),
            mark,
            class_="photo",
            style=f"aspect-ratio:{wide}/{high_}",
        ),
        tag("small", words),
    )
