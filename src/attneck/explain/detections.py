"""Detections drawn on their image, and pictures of several detectors side by side (BoTNet Fig. 11)."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from attneck.explain.fonts import fitting
from attneck.explain.palette import COLOURS
from attneck.explain.plain import printable

LONGEST = 800
"""The longer side of a picture has this many pixels at least, so that its labels can be read."""

FONT_SIZE, LINE = 14, 2
"""Pixels on a picture of that size; a larger one has more, to be read when it is shown as small."""
ALPHA = 0.45
"""How much of a mask is its colour."""
OUTSIDE = 3
"""A label stands so many times its own height away from its box at most."""

SAME = 0.5
"""Intersection over union of an object's boxes in two pictures, at least."""

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""x and y of the upper left corner, and of the lower right one, which is outside."""


def draw(
    image: Image.Image, detections: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None = None
) -> Image.Image:
    """Boxes, masks, labels and scores on an image, each object in its own colour, the best on top.

    A small image is enlarged. A label stands where it covers no object and no other label, if there is such a
    place beside its box.

    Args:
        detections: COCO's results or annotations on this image, each with `category`, the name of its class.
            Annotations have no score.
        numbers: each one's for `colour_of`; by their scores unless given.
    """
    scale = max(1.0, LONGEST / max(image.size))
    width, height = size = round(scale * image.width), round(scale * image.height)
    larger = max(size) / LONGEST
    pixels = np.array(image.convert("RGB").resize(size))
    order = _by_score(detections)
    rows = [detections[at] for at in order]
    colours = [colour_of(rank if numbers is None else numbers[at]) for rank, at in enumerate(order)]
    covered = np.zeros((height, width), dtype=bool)  # by objects
    boxes: list[Rectangle] = []
    for row, colour in reversed([*zip(rows, colours, strict=True)]):
        box = _rectangle(row, scale)
        boxes.insert(0, box)
        if "segmentation" in row:
            mask = (
                np.asarray(Image.fromarray(_mask(row, image.size)).resize(size, Image.Resampling.NEAREST)) > 0
            )
            pixels[mask] = np.round((1 - ALPHA) * pixels[mask] + ALPHA * np.array(colour))
            covered |= mask
        else:
            covered[max(0, box[1]) : max(0, box[3]), max(0, box[0]) : max(0, box[2])] = True
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for box, colour in reversed([*zip(boxes, colours, strict=True)]):
        pen.rectangle((*box[:2], box[2] - 1, box[3] - 1), outline=colour, width=round(LINE * larger))
    taken: list[Rectangle] = []
    for row, box, colour in zip(rows, boxes, colours, strict=True):
        text = f"{row['category']} {row['score']:.2f}" if "score" in row else str(row["category"])
        font = fitting(text, round(FONT_SIZE * larger))
        left, top, right, bottom = map(round, pen.textbbox((0, 0), text, font=font))
        pad = round(2 * larger)
        place = free_place(box, (right - left + 2 * pad, bottom - top + 2 * pad), covered, taken)
        taken.append(place)
        if place[3] < box[1] or place[1] > box[3]:  # away from its box: a line leads there
            pen.line(
                (place[0], place[1], place[0], box[1] if place[3] < box[1] else box[3]), colour, round(larger)
            )
        pen.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=colour)
        pen.text((place[0] + pad - left, place[1] + pad - top), text, fill=ink_on(colour), font=font)
    return picture


def numbered(pictures: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
    """Numbers for the colours of `draw`, so that an object has one colour in several pictures of an image.

    Two of one class are the same object if their boxes overlap by SAME or more; the surest are paired first.
    """
    known: list[tuple[Mapping[str, Any], Rectangle]] = []
    found = []
    for detections in pictures:
        numbers, free = [0] * len(detections), {*range(len(known))}
        for at in _by_score(detections):
            row, box = detections[at], _rectangle(detections[at])
            like = {
                number: _overlap(box, known[number][1])
                for number in free
                if known[number][0]["category"] == row["category"]
            }
            best = max(like, key=lambda number: like[number], default=-1)
            if best < 0 or like[best] < SAME:
                best = len(known)
                known.append((row, box))
            free.discard(best)
            numbers[at] = best
        found.append(numbers)
    return found


def free_place(
    box: Rectangle, size: tuple[int, int], covered: NDArray[np.bool_], taken: list[Rectangle]
) -> Rectangle:
    """Where a label of `size` (width, height) stands: beside its box, or in it, inside the picture.

    covered: where objects are, [height, width] of the picture.
    taken: the labels that are there.
    """
    (w, h), (height, width) = size, covered.shape
    x0, y0, x1, y1 = box
    columns = (x0, x1 - w, (x0 + x1 - w) // 2)
    beside = [(x, y0 - h) for x in columns] + [(x, y1) for x in columns]
    beside += [(x, y) for x in (x1, x0 - w) for y in (y0, y1 - h)]
    away = [(x, y) for n in range(2, OUTSIDE + 2) for x in columns for y in (y0 - n * h, y1 + (n - 1) * h)]
    inside = [(x, y) for x in columns for y in (y0, y1 - h)]
    best: tuple[float, Rectangle] | None = None
    for preference, (x, y) in enumerate([*beside, *inside, *away]):
        x, y = max(0, min(x, width - w)), max(0, min(y, height - h))
        place = (x, y, x + w, y + h)
        labels = sum(_shared(place, other) for other in taken) / (w * h)
        objects = float(covered[y : y + h, x : x + w].mean())
        cost = 10 * labels + objects + preference / 1000
        if best is None or cost < best[0]:
            best = cost, place
    assert best is not None
    return best[1]


def colour_of(number: int) -> Colour:
    """The colour of an object by its rank, from 0: no two of some hundreds are alike."""
    if number < len(COLOURS):
        return _rgb(COLOURS[number])
    hue = number * 0.618034 % 1  # by the golden ratio: far from those before
    red, green, blue = colorsys.hls_to_rgb(hue, (0.35, 0.55, 0.75)[number % 3], 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever has the greater contrast by WCAG 2: 4.58 or more on any colour."""
    black, white = (0, 0, 0), (255, 255, 255)
    return max(black, white, key=lambda ink: contrast(ink, colour))


def contrast(one: Colour, other: Colour) -> float:
    """WCAG 2's contrast ratio of two colours, 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def beside(pictures: list[Image.Image], titles: list[str]) -> Figure:
    """The pictures in a row, each under its title."""
    width, height = pictures[0].size
    side = 6.0  # inches
    figure = Figure(figsize=(side * len(pictures), side * height / width + 0.5), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures, titles, strict=True
    ):
        axes.imshow(picture)
        axes.set_title(printable(title), parse_math=False)
        axes.set_axis_off()
    return figure


def enlarged(
    detections: list[dict[str, Any]], small: tuple[int, int], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Detections on a smaller copy of an image → in the image's own pixels; masks by their nearest pixel.

    small, size: (width, height) of the copy and of the image.
    """
    if small == size:
        return detections
    ratios = [size[0] / small[0], size[1] / small[1]] * 2
    rows = []
    for row in detections:
        box = [round(side * ratio, 2) for side, ratio in zip(row["bbox"], ratios, strict=True)]
        mask = {}
        if "segmentation" in row:
            mask = {"segmentation": _runs(_mask(row, small), size)}
        rows.append(row | {"bbox": box} | mask)
    return rows


def _runs(mask: NDArray[np.uint8], size: tuple[int, int]) -> dict[str, Any]:
    """A mask [h, w] → COCO's run lengths of it at `size`, made without a mask of that size."""
    (height, width), (W, H) = mask.shape, size
    ends = -(-np.arange(1, height + 1) * H // height)  # the rows of the image end where a row of mask does
    columns = mask.T[np.arange(W) * width // W].ravel()  # [W · h], a column of the image after the other
    last = np.flatnonzero(np.diff(columns))  # the last of each run of equals
    counts = np.diff([0, *(last // height * H + ends[last % height]).tolist(), W * H]).tolist()
    runs = rle.frPyObjects({"size": [H, W], "counts": [0] * int(columns[0]) + counts}, H, W)
    return {"size": [H, W], "counts": runs["counts"].decode()}


def _mask(row: dict[str, Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """0 and 1, [height, width] of the (width, height) that the row is in."""
    mask: NDArray[np.uint8] = rle.decode(rle.segmToRle(row["segmentation"], *size))
    return mask


def _by_score(detections: Sequence[Mapping[str, Any]]) -> list[int]:
    """The best first; what has no score is there."""
    return sorted(range(len(detections)), key=lambda at: -float(detections[at].get("score", 1)))


def _rectangle(row: Mapping[str, Any], scale: float = 1.0) -> Rectangle:
    """Its box in whole pixels, one at least."""
    x, y, w, h = (scale * side for side in row["bbox"])
    left, top = round(x), round(y)
    return left, top, max(left + 1, round(x + w)), max(top + 1, round(y + h))


def _rgb(colour: str) -> Colour:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def _luminance(colour: Colour) -> float:
    """WCAG 2's relative luminance of an sRGB colour."""
    shares = [part / 255 for part in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """Intersection over union."""
    shared = _shared(one, other)
    return shared / (_shared(one, one) + _shared(other, other) - shared)


def _shared(one: Rectangle, other: Rectangle) -> int:
    """Pixels that are in both."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)
