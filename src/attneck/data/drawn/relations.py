"""The embedded set of relations: problems that no single part of an image answers, drawn with numpy alone.

Whether two marks are equal, where one lies beside another, whether a line joins them. An image is a function
of (problem, index, side), in whole numbers, and so has the same bits on every machine. Each epoch draws new
images, so nothing can be learnt by heart. The answer to image i is one bit of a hash of i: both answers are
equally likely, and nothing else of the image is drawn with it.

Marks have the same size in pixels in an image of any side: a larger image has more places for them.

Sources: `same` and `twins` are same-different problems as in Kim, Ricci and Serre (2018, arXiv 1802.03390),
whose glyphs are squares of random bits. `identity` is that of Stabinger, Peer and Rodríguez-Sánchez (2021,
arXiv 2102.11944): half of the glyphs are equal, or none are. `left_of`, `inside` and `nearest` are spatial
relations, which Vaishnav et al. (2022, arXiv 2108.03603) find easier than same-different ones. `path` is
after Pathfinder (Linsley et al. 2018, arXiv 1805.08315).

Letters: B images, S the side in pixels, n marks, G·G the places on the grid of marks.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from attneck.data.classification import Batch, ClassificationDataset
from attneck.data.drawn.shapes import FIRST_VALIDATION_INDEX, part
from attneck.data.fingerprint import Fingerprint, of_options
from attneck.data.sampling import Key, SizedKey, hash64, split_keys, uniforms

Ints = NDArray[np.int64]
Ink = NDArray[np.bool_]
"""bool [B, S, S]: what is drawn on the noise."""
Answers = NDArray[np.bool_]
"""bool [B]."""
Draw = NDArray[np.float64]
"""float64 [B, n] from [0, 1)."""

CLASSES = ("no", "yes")
MARK = 8
"""Pixels a side of a glyph and of a mark: the grid's step."""
STEP = 4
"""Pixels between two points of a path."""
GROUND, NOISE, CONTRAST = 24, 44, 160
"""A pixel is ground + noise in [0, NOISE) + contrast where there is ink, of 255."""
MEAN, STD = (0.22, 0.22, 0.22), (0.22, 0.22, 0.22)
"""About that of all problems at 32×32, by channel, in [0, 1]."""

_EPOCH = -1  # no training epoch's: see `shapes`
_ANSWER, _PIXELS = 103, 104  # set these draws apart from those of the other drawn sets


class Relations(ClassificationDataset):
    """`count` images of a problem, drawn when asked for; another `count` in each epoch."""

    def __init__(self, problem: str, *, first: int, count: int, image_size: int) -> None:
        answers = _answers(first + np.arange(count))
        super().__init__(
            classes=CLASSES, mean=MEAN, std=STD, image_size=image_size, labels=answers.astype(np.int64)
        )
        self.problem, self.first, self.count = problem, first, count

    def numbers(self, keys: Sequence[Key]) -> Ints:
        """The index of each key's image, int64 [B]: an epoch's follow those of the epoch before."""
        epochs, indices = split_keys(keys)
        if len(keys) and not 0 <= indices.min() <= indices.max() < self.count:
            raise IndexError(f"image {indices.max()} of {self.count}")
        return self.first + epochs * self.count + indices

    def at(self, side: int) -> Self:
        _check_side(self.problem, side)
        return super().at(side)

    def __getitems__(self, keys: Sequence[Key | SizedKey | int]) -> Batch:
        if self.first < FIRST_VALIDATION_INDEX and (
            bare := [key for key in keys if not isinstance(key, tuple)]
        ):
            raise ValueError(
                f"index {bare[0]} has no epoch, and each epoch of relations has other images: index with "
                f"(epoch, {bare[0]}), or give the DataLoader batch_sampler=attneck.data.TrainBatches(…)"
            )
        return super().__getitems__(keys)

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        return draw(self.problem, self.numbers(keys), self.image_size)[0]

    def targets(self, keys: Sequence[Key]) -> Ints:
        return _answers(self.numbers(keys)).astype(np.int64)

    def fingerprint(self) -> Fingerprint:
        return of_options(self.count, first=self.first, side=self.image_size, problem=self.problem)


def open_relations(
    name: str,
    split: str,
    *,
    problem: str = "same",
    image_size: int = 32,
    augment: str = "none",
    seed: int = 0,
    size: int | None = None,
) -> Relations:
    """Opens "relations" for classification: is it so, "no" or "yes"?

    Args:
        problem: one of `PROBLEMS`.
        image_size: side in pixels.
        augment, seed: there is no augmentation, and the images are the same for every seed.
        size: images in an epoch, 10,000 for training and 2,000 for validation unless given. Every epoch of
            training has other ones.

    Raises ValueError for an unknown problem, and for a side with too few places for its marks.
    """
    if problem not in PROBLEMS:
        raise ValueError(f"problem is {problem!r}: choose {', '.join(PROBLEMS)}")
    _check_side(problem, image_size)
    first, count = part(split, size, held_out=2_000)
    return Relations(problem, first=first, count=count, image_size=image_size)


def _check_side(problem: str, side: int) -> None:
    if side < LEAST[problem] or side % STEP:
        raise ValueError(
            f"relations: {problem} in images of {side} pixels: wanted a multiple of {STEP}, "
            f"{LEAST[problem]} or more"
        )


def draw(problem: str, indices: Ints, side: int) -> tuple[NDArray[np.uint8], Answers]:
    """Images uint8 [B, S, S, 3], grey, and their answers; `indices` int64 [B]."""
    answers = _answers(indices)
    ink = PROBLEMS[problem](answers, indices, side)
    # Eight pixels of noise from the eight bytes of one hash.
    words = hash64(_PIXELS, indices[:, None], np.arange(-(-side * side // 8)))
    noise = words.astype("<u8").view(np.uint8).reshape(len(indices), -1)[:, : side * side]
    pixels = GROUND + (noise.astype(np.uint16) * NOISE >> 8).astype(np.uint8).reshape(-1, side, side)
    pixels += ink.astype(np.uint8) * np.uint8(CONTRAST)
    return np.repeat(pixels[..., None], 3, axis=3), answers


def _answers(indices: Ints) -> Answers:
    return (hash64(_ANSWER, indices) >> np.uint64(63)).astype(np.bool_)


def _draws(indices: Ints, count: int) -> Draw:
    return uniforms(0, _EPOCH, indices, count)


def _ranks(draws: Draw) -> Ints:
    """A random order of the last dimension's places."""
    return np.argsort(draws, axis=-1, kind="stable").astype(np.int64)


# Glyphs: 4×4 random bits.


def _distinct(draws: Draw, most: int) -> Ints:
    """n different numbers of 1 … most for each image, int64 [B, n]: every set is equally likely."""
    n = draws.shape[1] // 2
    numbers = np.sort((draws[:, :n] * (most - n + 1)).astype(np.int64), axis=1) + np.arange(1, n + 1)
    return np.take_along_axis(numbers, _ranks(draws[:, n:]), axis=1)


def _glyphs(n: int, equal: int) -> Callable[[Answers, Ints, int], Ink]:
    """n different glyphs, but `equal` of them are one where the answer is yes."""

    def problem(answers: Answers, indices: Ints, side: int) -> Ink:
        places = (side // MARK) ** 2
        draws = _draws(indices, 2 * n + places)
        numbers = _distinct(draws[:, : 2 * n], (1 << 16) - 1)
        numbers[answers, :equal] = numbers[answers, :1]
        bits = (numbers[..., None] >> np.arange(16) & 1).astype(np.bool_).reshape(len(indices), n, 4, 4)
        marks = bits.repeat(MARK // 4, axis=2).repeat(MARK // 4, axis=3)
        return _placed(marks, _ranks(draws[:, 2 * n :])[:, :n], side)

    return problem


def _placed(marks: Ink, places: Ints, side: int) -> Ink:
    """Marks bool [B, n, MARK, MARK] in places int64 [B, n] of the grid, counted by rows."""
    grid = side // MARK
    cells = np.zeros((len(marks), grid * grid, MARK, MARK), dtype=np.bool_)
    np.put_along_axis(cells, places[:, :, None, None], marks, axis=1)
    ink = np.zeros((len(marks), side, side), dtype=np.bool_)
    rows = cells.reshape(-1, grid, grid, MARK, MARK).transpose(0, 1, 3, 2, 4)
    ink[:, : grid * MARK, : grid * MARK] = rows.reshape(-1, grid * MARK, grid * MARK)
    return ink


# Marks of one shape each.


def _shapes() -> dict[str, Ink]:
    x, y = np.meshgrid(np.arange(MARK) * 2 - MARK + 1, np.arange(MARK) * 2 - MARK + 1)  # odd, -7 … 7
    edge = np.maximum(abs(x), abs(y))
    return {
        "disc": x * x + y * y < 40,
        "cross": (np.minimum(abs(x), abs(y)) < 2) & (edge < 7),
        "frame": (edge < 7) & (edge > 4),
        "bar": (abs(x) < 7) & (abs(y) < 4),
    }


_SHAPES = _shapes()


def _put(names: Sequence[str], places: Ints, side: int) -> Ink:
    """The named marks, the same for every image, in places [B, n]."""
    marks = np.stack([_SHAPES[name] for name in names])
    return _placed(np.broadcast_to(marks, (len(places), *marks.shape)), places, side)


def _left_of(answers: Answers, indices: Ints, side: int) -> Ink:
    """The disc lies to the left of the cross, in whatever rows; a frame and a bar lie anywhere."""
    grid = side // MARK
    draws = _draws(indices, grid + 2 + grid * grid)
    columns = np.sort(_ranks(draws[:, :grid])[:, :2], axis=1)
    columns[~answers] = columns[~answers, ::-1]
    rows = (draws[:, grid : grid + 2] * grid).astype(np.int64)
    pair = rows * grid + columns
    free = draws[:, grid + 2 :].copy()
    np.put_along_axis(free, pair, 2.0, axis=1)  # sorts last
    return _put(("disc", "cross", "frame", "bar"), np.concatenate([pair, _ranks(free)[:, :2]], axis=1), side)


def _nearest(answers: Answers, indices: Ints, side: int) -> Ink:
    """Of disc and frame, the disc is nearer to the cross."""
    grid = side // MARK
    places = grid * grid
    draws = _draws(indices, 2 * places)
    order = _ranks(draws[:, :places])
    cross, one = order[:, 0], order[:, 1]
    every = np.arange(places)

    def distance(there: Ints) -> Ints:
        """Its square, from the cross, in steps of the grid."""
        return (there // grid - cross[:, None] // grid) ** 2 + (there % grid - cross[:, None] % grid) ** 2

    to_one, to_every = distance(one[:, None]), distance(every[None, :])
    fits = (to_every != to_one) & (to_every > 0)
    other = np.argmax(np.where(fits, draws[:, places:], -1.0), axis=1)
    nearer = np.where(distance(other[:, None])[:, 0] < to_one[:, 0], other, one)
    farther = one + other - nearer
    disc, frame = np.where(answers, nearer, farther), np.where(answers, farther, nearer)
    return _put(("cross", "disc", "frame"), np.stack([cross, disc, frame], axis=1), side)


def _inside(answers: Answers, indices: Ints, side: int) -> Ink:
    """A dot lies inside one of two closed curves. Each is the outline of a chain of three discs."""
    draws = _draws(indices, 2 * 11 + 1)
    half, line = side // 2, np.arange(side)
    blobs = np.zeros((len(indices), side, side), dtype=np.bool_)
    for left, curve in ((0, draws[:, :11]), (half, draws[:, 11:22])):
        x = left + 4 + (curve[:, 0] * (half - 9)).astype(np.int64)
        y = 4 + (curve[:, 1] * (side - 8)).astype(np.int64)
        for disc in curve[:, 2:].reshape(-1, 3, 3).transpose(1, 0, 2):
            radius = 3 + (disc[:, 0] * 2).astype(np.int64)
            there = (line - x[:, None])[:, None, :] ** 2 + (line - y[:, None])[:, :, None] ** 2
            blobs |= there <= (radius * radius)[:, None, None]
            x = np.clip(
                x + (disc[:, 1] * 9).astype(np.int64) - 4, left + 4, left + half - 6
            )  # a dark line between
            y = np.clip(y + (disc[:, 2] * 9).astype(np.int64) - 4, 4, side - 5)
    turned = draws[:, 22] < 0.5
    blobs[turned] = blobs[turned].transpose(0, 2, 1)
    outlines = blobs & ~_shrunk(blobs)
    clear = _shrunk(~_grown(outlines)) & (blobs == answers[:, None, None])  # the dot touches no line
    bits = hash64(_PIXELS, _ANSWER, indices[:, None], np.arange(side * side))
    scores = np.where(clear.reshape(len(indices), -1), (bits >> np.uint64(1)).astype(np.int64), -1)
    dot = np.arange(side * side) == np.argmax(scores, axis=1)[:, None]
    return outlines | _grown(dot.reshape(blobs.shape))


def _grown(mask: Ink) -> Ink:
    """`mask` and its four neighbours."""
    out = mask.copy()
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    out[:, :, 1:] |= mask[:, :, :-1]
    out[:, :, :-1] |= mask[:, :, 1:]
    return out


def _shrunk(mask: Ink) -> Ink:
    """What of `mask` has all four neighbours in it; beyond the image there is nothing."""
    bordered = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return ~_grown(~bordered)[:, 1:-1, 1:-1]


# Paths over points STEP pixels apart; each step is a dash.

_TURNS = ((0, 1), (1, 0), (0, -1), (-1, 0))
LENGTH, DISTRACTORS = 6, 2
"""Steps of an arm at most, and paths that join nothing."""


def _path(answers: Answers, indices: Ints, side: int) -> Ink:
    """Two dots are joined by a path.

    Four arms grow from the corners of a square of four points, and two dashes join them to two paths: both
    run across, or both down. The dots are at the ends of two arms that start side by side, so all that the
    answer changes are these two dashes: where dots and arms lie says nothing of it.
    """
    points = side // STEP
    growth = (4 + DISTRACTORS) * LENGTH * len(_TURNS)
    draws = _draws(indices, 3 + DISTRACTORS * points * points + growth)
    first, starts, turns = np.split(draws, [3, 3 + DISTRACTORS * points * points], axis=1)
    lines = _Lines(len(indices), points)
    top, left = (1 + (first[:, k] * (points - 3)).astype(np.int64) for k in (0, 1))
    corners = [(top + down, left + right) for down in (0, 1) for right in (0, 1)]
    scores = turns.reshape(-1, 4 + DISTRACTORS, LENGTH, len(_TURNS))
    for row, column in corners:
        lines.take(row, column)
    ends = list(corners)
    for step in range(LENGTH):  # in turns, so that no arm takes the others' room
        ends = [lines.grow(end, scores[:, arm, step]) for arm, end in enumerate(ends)]
    for number, start in enumerate(np.split(starts, DISTRACTORS, axis=1), start=4):
        end = lines.start(start)
        for step in range(LENGTH):
            end = lines.grow(end, scores[:, number, step])
    beside = first[:, 2] < 0.5  # the dots' arms start one beside the other, rather than one below
    across = beside == answers
    every = np.arange(len(indices))
    for (row, column), run in ((corners[0], across), (corners[2], across)):
        lines.across[every[run], row[run], column[run]] = True
    for row, column in (corners[0], corners[1]):
        lines.down[every[~across], row[~across], column[~across]] = True
    ink = lines.ink(side)
    other = tuple(np.where(beside, one, two) for one, two in zip(ends[1], ends[2], strict=True))
    for row, column in (ends[0], other):  # three pixels square: a dash to the next point stays to be seen
        for pixel in range(9):
            ink[every, row * STEP + 1 + pixel // 3, column * STEP + 1 + pixel % 3] = True
    return ink


class _Lines:
    """Paths in B images that share no point: dashes to the right of a point and below it, bool [B, P, P]."""

    def __init__(self, images: int, points: int) -> None:
        self.every = np.arange(images)
        self.across, self.down = (np.zeros((images, points, points), dtype=np.bool_) for _ in range(2))
        self.free = np.zeros((images, points + 2, points + 2), dtype=np.bool_)  # with a border that is not
        self.free[:, 1:-1, 1:-1] = True

    def take(self, row: Ints, column: Ints) -> None:
        self.free[self.every, row + 1, column + 1] = False

    def start(self, draws: Draw) -> tuple[Ints, Ints]:
        """A free point, where there is one; taken."""
        inner = self.free[:, 1:-1, 1:-1]
        spot = np.argmax(np.where(inner.reshape(len(inner), -1), draws, -1.0), axis=1)
        row, column = spot // inner.shape[2], spot % inner.shape[2]
        self.take(row, column)
        return row, column

    def grow(self, end: tuple[Ints, Ints], draws: Draw) -> tuple[Ints, Ints]:
        """A step to a free neighbour, where there is one; the new end."""
        row, column = end
        open_ = np.stack(
            [self.free[self.every, row + 1 + down, column + 1 + right] for down, right in _TURNS], axis=1
        )
        turn = np.argmax(np.where(open_, draws, -1.0), axis=1)
        moves = open_.any(axis=1)
        down, right = np.array(_TURNS)[turn].T * moves
        new_row, new_column = row + down, column + right
        here, right_ = self.every[moves & (down == 0)], moves & (down == 0)
        self.across[here, row[right_], np.minimum(column, new_column)[right_]] = True
        here, down_ = self.every[moves & (right == 0)], moves & (right == 0)
        self.down[here, np.minimum(row, new_row)[down_], column[down_]] = True
        self.take(new_row, new_column)
        return new_row, new_column

    def ink(self, side: int) -> Ink:
        """The dashes, three pixels long: between two of them, at a point, there is a gap."""
        images, points, _ = self.across.shape
        cells = np.zeros((images, points, STEP, points, STEP), dtype=np.bool_)
        later = np.zeros_like(cells)
        cells[:, :, 2, :, 3] |= self.across
        later[:, :, 2, 1:, 0] |= self.across[:, :, :-1]
        later[:, :, 2, 1:, 1] |= self.across[:, :, :-1]
        cells[:, :, 3, :, 2] |= self.down
        later[:, 1:, 0, :, 2] |= self.down[:, :-1]
        later[:, 1:, 1, :, 2] |= self.down[:, :-1]
        return (cells | later).reshape(images, side, side)


PROBLEMS: dict[str, Callable[[Answers, Ints, int], Ink]] = {
    "same": _glyphs(2, 2),
    "twins": _glyphs(4, 2),
    "identity": _glyphs(8, 4),
    "left_of": _left_of,
    "inside": _inside,
    "nearest": _nearest,
    "path": _path,
}
LEAST = {"same": 16, "twins": 16, "identity": 24, "left_of": 16, "inside": 24, "nearest": 16, "path": 16}
"""Pixels a side in which a problem has room."""
