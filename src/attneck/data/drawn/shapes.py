"""The embedded data set: ten kinds of shapes on a cluttered ground, drawn with numpy alone.

An image is a function of (seed, index) and has the same bits on every machine: positions, sizes and colours
come from counter-based draws, shapes are inequalities in their own coordinates, and nothing is evaluated but
+, -, ·, / and comparisons, which IEEE 754 rounds in one way. A rotation is a rational point on the circle,
((1 - t²) / (1 + t²), 2t / (1 + t²)). A batch is drawn at once; each of its images is the same alone.

Letters: B images, n objects, S the side in pixels; coordinates x to the right and y down, the side being 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attneck.data.arrays import ArrayDataset
from attneck.data.sampling import hash64, uniforms

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

MEAN = (0.5, 0.5, 0.5)
STD = (0.243, 0.243, 0.243)
"""Of the training images at 32 x 32, by channel, in [0, 1], rounded."""

FIRST_VALIDATION_INDEX = 1 << 40
"""Training images are 0, 1, ...; validation images start here."""

CLUTTER = 8
"""Lines and dots under the objects."""
SMALLEST_CELL = 24
"""The fewest pixels a side in which an object is drawn."""

_EPOCH = -1  # No training epoch's: an image shares no draw with its augmentation.
_NOISE = 101  # Sets the pixels' draws apart from sampling's.
_CHUNK = 128  # Images drawn at a time, so that a map of them stays in the cache.
_PER_SCENE, _PER_CLUTTER, _PER_OBJECT = 10, 8, 12


class Scene(NamedTuple):
    """One image: uint8 [S, S, 3]; labels int64 [n]; boxes float32 [n, 4], x0 y0 x1 y1 in pixels, tight around
    the masks (a single pixel's box is 1 wide); masks bool [n, S, S], what is visible of each object."""

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: Floats
    masks: Mask


def _disc(u: Floats, v: Floats) -> Mask:
    return u * u + v * v < 1


def _ring(u: Floats, v: Floats) -> Mask:
    square = u * u + v * v
    return (square < 1) & (square > 0.36)


def _square(u: Floats, v: Floats) -> Mask:
    return np.maximum(abs(u), abs(v)) < 0.7


def _frame(u: Floats, v: Floats) -> Mask:
    side = np.maximum(abs(u), abs(v))
    return (side < 0.7) & (side > 0.4)


def _triangle(u: Floats, v: Floats) -> Mask:
    return (v > -0.5) & (abs(u) * 1.7320508 + v < 1)


def _star(u: Floats, v: Floats) -> Mask:
    # A pentagram: its points lie outside of one of its five lines at most.
    inside = np.zeros(u.shape, dtype=np.int8)
    for a, b in ((0.0, 1.0), (0.95105652, 0.30901699), (0.58778525, -0.80901699)):
        inside += u * a + v * b > -0.30901699
        if a:
            inside += v * b - u * a > -0.30901699
    return inside >= 4


def _cross(u: Floats, v: Floats) -> Mask:
    return (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.95)


def _crescent(u: Floats, v: Floats) -> Mask:
    return (u * u + v * v < 1) & ((u - 0.45) * (u - 0.45) + v * v > 0.6)


def _bars(u: Floats, v: Floats) -> Mask:
    return (abs(abs(u) - 0.5) < 0.22) & (abs(v) < 0.65)


def _heart(u: Floats, v: Floats) -> Mask:
    x, y = u * 1.36, v * 1.36 + 0.1
    ball = x * x + y * y - 1
    return ball * ball * ball < x * x * (y * y * y)


_SHAPES: dict[str, Callable[[Floats, Floats], Mask]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "bars": _bars,
    "heart": _heart,
}
"""Each inside the unit circle of its own coordinates (u, v)."""

CLASSES = tuple(_SHAPES)


Drawn = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [B, S, S, 3] and labels int64 [B]."""


class Shapes(ArrayDataset):
    """Images that are drawn anew, once, for another side.

    draw: the images and labels of a side.
    """

    def __init__(self, *arrays: Any, draw: Callable[[int], Drawn], **options: Any) -> None:
        super().__init__(*arrays, **options)
        self._draw, self._drawn = draw, {self.image_size: self.images}

    def at(self, side: int) -> Self:
        if side not in self._drawn:
            self._drawn[side], _ = self._draw(side)
        other = super().at(side)
        other.images = self._drawn[side]
        return other


def open_shapes(
    name: str,
    split: str,
    *,
    image_size: int = 32,
    augment: str = "none",
    seed: int = 0,
    size: int | None = None,
) -> ArrayDataset:
    """Opens "shapes" or "clear_shapes" for classification: images of one object, the same for every `seed`.

    Those of "clear_shapes" are easy: large, of strong contrast, with little noise and no clutter.

    `size`: how many are drawn; 10,000 for training and 2,000 for validation unless given. `augment`: see
    `ArrayDataset`.
    """
    first, count = part(split, size, held_out=2_000)
    draw = partial(images, 0, np.arange(first, first + count), clear=name == "clear_shapes")
    drawn, labels = draw(image_size)
    return Shapes(drawn, labels, draw=draw, classes=CLASSES, mean=MEAN, std=STD, augment=augment, seed=seed)


def part(split: str, size: int | None, held_out: int) -> tuple[int, int]:
    """The first index of a split's images, and their number: `size`, or else 10,000 or `held_out`."""
    return (0, size or 10_000) if split == "train" else (FIRST_VALIDATION_INDEX, size or held_out)


def scene(seed: int, index: int, image_size: int = 32, objects: int = 1) -> Scene:
    """One image with `objects` shapes, none of which hides another altogether.

    Raises ValueError when the objects do not fit: each takes a cell of ceil(√objects)² cells, of
    SMALLEST_CELL pixels a side at least.
    """
    image, labels, masks = (part[0] for part in _draw(seed, np.array([index]), image_size, objects))
    return Scene(image, labels, _boxes(masks), masks)


def images(seed: int, indices: ArrayLike, image_size: int = 32, *, clear: bool = False) -> Drawn:
    """One-object images uint8 [B, S, S, 3] and labels int64 [B]: those of `scene`, a batch at a time.

    `clear`: without clutter, and with the upper half of all sizes and contrasts and the least noise.
    """
    indices = np.asarray(indices, dtype=np.int64)
    pixels = np.empty((len(indices), image_size, image_size, 3), dtype=np.uint8)
    labels = np.empty(len(indices), dtype=np.int64)
    for first in range(0, len(indices), _CHUNK):
        part = slice(first, first + _CHUNK)
        pixels[part], drawn, _ = _draw(seed, indices[part], image_size, 1, clear)
        labels[part] = drawn[:, 0]
    return pixels, labels


def _draw(
    seed: int, indices: NDArray[np.int64], size: int, objects: int, clear: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Mask]:
    """Images uint8 [B, S, S, 3], labels int64 [B, n] and masks bool [B, n, S, S]."""
    grid = 1
    while grid * grid < objects:
        grid += 1
    if objects < 1 or size < grid * SMALLEST_CELL:
        raise ValueError(
            f"shapes: {objects} objects in an image of {size} x {size} pixels: wanted 1 object or more and "
            f"{grid * SMALLEST_CELL} pixels a side or more"
        )
    count = _PER_SCENE + CLUTTER * _PER_CLUTTER + grid * grid + objects * _PER_OBJECT
    draws = uniforms(seed, _EPOCH, indices, count)
    ground, clutter, cells, shapes = np.split(
        draws, np.cumsum([_PER_SCENE, CLUTTER * _PER_CLUTTER, grid * grid]), axis=1
    )
    if clear:
        ground[:, 8] = 0  # noise
        shapes[:, [1, 7]] = 0.5 + 0.5 * shapes[:, [1, 7]]  # radius and contrast of the only object
    canvas, base = _ground(seed, indices, size, ground)
    for piece in np.split(clutter, CLUTTER, axis=1) if not clear else ():
        _add_clutter(canvas, piece)
    positions = np.argsort(cells, axis=1, kind="stable").astype(np.int64)
    labels = np.empty((len(indices), objects), dtype=np.int64)
    masks = np.empty((len(indices), objects, size, size), dtype=np.bool_)
    for n, piece in enumerate(np.split(shapes, objects, axis=1)):
        labels[:, n], masks[:, n] = _add_object(canvas, base, piece, positions[:, n], grid)
        masks[:, :n] &= ~masks[:, n : n + 1]
    return (
        (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1),
        labels,
        masks,
    )


def _map(values: NDArray[np.float64]) -> Floats:
    """[B] numbers as float32 [B, 1, 1], to go with maps [B, S, S]."""
    return values.astype(np.float32)[:, None, None]


def _points(size: int, shift: float = 0.5) -> tuple[Floats, Floats]:
    """x [1, 1, S] and y [1, S, 1] of a point in every pixel; its centre by default."""
    line = ((np.arange(size) + shift) / size).astype(np.float32)
    return line[None, None, :], line[None, :, None]


def _turn(
    draw: NDArray[np.float64], half: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(cos, sin) of any direction: t in (-1, 1) makes half a turn, `half` adds the other."""
    t = 2 * draw - 1
    sign = np.where(half < 0.5, -1.0, 1.0)
    return sign * (1 - t * t) / (1 + t * t), sign * (2 * t) / (1 + t * t)


def _ground(
    seed: int, indices: NDArray[np.int64], size: int, draws: NDArray[np.float64]
) -> tuple[Floats, NDArray[np.float64]]:
    """A colour with a gradient and noise, float32 [B, 3, S, S] in about [0, 1], and the colour [B, 3]."""
    base = 0.15 + 0.7 * draws[:, 0:3]
    slope = 0.5 * (draws[:, 3:6] - 0.5)
    cos, sin = _turn(draws[:, 6], draws[:, 7])
    x, y = _points(size)
    along = _map(cos) * (x - np.float32(0.5)) + _map(sin) * (y - np.float32(0.5))
    # Three 21-bit numbers a pixel, one for each channel, from one hash.
    pixels = np.arange(size * size, dtype=np.int64)
    bits = hash64(_NOISE, seed, indices[:, None], pixels).reshape(-1, size, size)
    amount = _map((0.1 + 0.8 * draws[:, 8] * draws[:, 8]) / (1 << 21))
    canvas = np.empty((len(indices), 3, size, size), dtype=np.float32)
    for c in range(3):
        noise = ((bits >> np.uint64(21 * c)) & np.uint64((1 << 21) - 1)).astype(np.float32)
        canvas[:, c] = _map(base[:, c]) + _map(slope[:, c]) * along + amount * (noise - np.float32(1 << 20))
    return canvas, base


def _add_clutter(canvas: Floats, draws: NDArray[np.float64]) -> None:
    """A line or a dot of any colour, in place."""
    size = canvas.shape[-1]
    x, y = _points(size)
    x, y = x - _map(draws[:, 0]), y - _map(draws[:, 1])
    cos, sin = _turn(draws[:, 2], draws[:, 2])
    u, v = _map(cos) * x + _map(sin) * y, _map(cos) * y - _map(sin) * x
    length, width = _map(0.02 + 0.16 * draws[:, 3]), _map(0.015 + 0.025 * draws[:, 4])
    # Edges one pixel soft.
    alpha = np.minimum(length - abs(u), width - abs(v)) * np.float32(size) + np.float32(0.5)
    _blend(canvas, np.clip(alpha, 0, 1), draws[:, 5:8])


def _add_object(
    canvas: Floats, base: NDArray[np.float64], draws: NDArray[np.float64], cells: NDArray[np.int64], grid: int
) -> tuple[NDArray[np.int64], Mask]:
    """A shape in its cell of grid x grid, in place; its label [B] and its whole mask [B, S, S]."""
    size = canvas.shape[-1]
    labels = (draws[:, 0] * len(CLASSES)).astype(np.int64)
    radius = ((0.12 + 0.26 * draws[:, 1]) if grid == 1 else (0.2 + 0.16 * draws[:, 1])) / grid
    centre_x = (cells % grid) / grid + radius + draws[:, 2] * (1 / grid - 2 * radius)
    centre_y = (cells // grid) / grid + radius + draws[:, 3] * (1 / grid - 2 * radius)
    if grid > 1:
        # Out of its cell by a third of its radius, at most an eighth of the cell: neighbours overlap, and
        # what they reach of a shape (two radii, half a cell, across) is too little to hide it.
        radius = radius * 1.35
    cos, sin = _turn(draws[:, 4], draws[:, 5])
    narrow = 1 + 0.3 * draws[:, 6]
    # The affine map from the image to the shape's own (u, v).
    rows = [
        _map(value) for value in (narrow * cos / radius, narrow * sin / radius, -sin / radius, cos / radius)
    ]
    coverage = np.zeros((len(labels), size, size), dtype=np.int8)
    for kind, inside in enumerate(_SHAPES.values()):
        chosen = np.flatnonzero(labels == kind)
        if not len(chosen):
            continue
        a, b, c, d = (row[chosen] for row in rows)
        x0, y0 = _map(centre_x[chosen]), _map(centre_y[chosen])
        total = np.zeros((len(chosen), size, size), dtype=np.int8)
        for shift_x in (0.25, 0.75):
            for shift_y in (0.25, 0.75):
                x, y = _points(size, shift_x)[0] - x0, _points(size, shift_y)[1] - y0
                total += inside(a * x + b * y, c * x + d * y)
        coverage[chosen] = total
    contrast = (0.04 + 0.36 * draws[:, 7]) * np.where(draws[:, 8] < 0.5, -1.0, 1.0)
    colour = base + contrast[:, None] + 0.2 * (draws[:, 9:12] - 0.5)
    _blend(canvas, coverage.astype(np.float32) * np.float32(0.25), colour)
    return labels, coverage >= 2


def _blend(canvas: Floats, alpha: Floats, colour: NDArray[np.float64]) -> None:
    for c in range(3):
        canvas[:, c] += alpha * (_map(colour[:, c]) - canvas[:, c])


def _boxes(masks: Mask) -> Floats:
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
