"""The set of relations: answers read off the pixels by other means, both as likely; no image twice."""

import hashlib
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from attneck.data import open_dataset
from attneck.data.drawn.relations import LEAST, MARK, PROBLEMS, STEP, draw
from attneck.data.drawn.shapes import FIRST_VALIDATION_INDEX
from attneck.training.recipe import Data
from attneck.training.recipe_file import parse_recipe

Ink = NDArray[np.bool_]
PINNED = {
    "same": "fab1a277c5628e29",
    "twins": "d6559515294a633a",
    "identity": "9a11722e8dd8cad2",
    "left_of": "0ff7d707e44334b2",
    "inside": "7d1855ddb117f8a7",
    "nearest": "b14bc130408bb7b1",
    "path": "747f28c64bdcb59a",
}


def cells(ink: Ink) -> dict[tuple[int, int], bytes]:
    """What is in each place of the grid where there is something."""
    grid = ink.shape[0] // MARK
    cut = {
        (row, column): ink[row * MARK : (row + 1) * MARK, column * MARK : (column + 1) * MARK]
        for row in range(grid)
        for column in range(grid)
    }
    return {place: mark.tobytes() for place, mark in cut.items() if mark.any()}


def equal_marks(ink: Ink) -> int:
    """How often the commonest mark is there."""
    marks = list(cells(ink).values())
    return max(marks.count(mark) for mark in marks)


def kinds(ink: Ink) -> dict[str, tuple[int, int]]:
    """Where the disc, the cross, the frame and the bar are, told by their rows of pixels."""
    found = {}
    for place, mark in cells(ink).items():
        pixels = np.frombuffer(mark, dtype=np.bool_).reshape(MARK, MARK)
        rows = pixels.sum(axis=1)
        name = (
            "frame"
            if not pixels[4, 4]
            else "bar"
            if not pixels[1].any()
            else "cross"
            if rows[1] == 2
            else "disc"
        )
        found[name] = place
    return found


def is_left(ink: Ink) -> bool:
    there = kinds(ink)
    assert len(there) == 4
    assert there["disc"][1] != there["cross"][1]
    return there["disc"][1] < there["cross"][1]


def disc_is_nearer(ink: Ink) -> bool:
    there = {name: np.array(place) for name, place in kinds(ink).items()}
    disc, frame = (np.sum((there[name] - there["cross"]) ** 2) for name in ("disc", "frame"))
    assert disc != frame
    return bool(disc < frame)


def is_inside(ink: Ink) -> bool:
    """Whether water from the image's border reaches the dot, the only plus of five pixels."""
    plus = ndimage.generate_binary_structure(2, 1)
    ink = np.pad(ink, 1)
    dot = ndimage.binary_hit_or_miss(ink, plus, ~plus)
    assert dot.sum() == 1
    water, _ = ndimage.label(~ink | ndimage.binary_dilation(dot, plus))
    return bool(water[dot][0] != water[0, 0])


def are_joined(ink: Ink) -> bool:
    points = ink.shape[0] // STEP
    at = np.arange(points) * STEP
    # The middle pixel of a dash lies half-way between its points; a point's own is dark but for a dot's.
    across = [(i, j, i, j + 1) for i in range(points) for j in range(points - 1) if ink[at[i] + 2, at[j] + 4]]
    down = [(i, j, i + 1, j) for i in range(points - 1) for j in range(points) if ink[at[i] + 4, at[j] + 2]]
    dots = [i * points + j for i in range(points) for j in range(points) if ink[at[i] + 2, at[j] + 2]]
    assert len(dots) == 2
    edges = [(i * points + j, k * points + m) for i, j, k, m in across + down]
    one, other = zip(*edges, strict=True)
    graph = coo_matrix((np.ones(len(edges)), (one, other)), shape=(points**2, points**2))
    groups = connected_components(graph, directed=False)[1]
    return bool(groups[dots[0]] == groups[dots[1]])


ORACLES = {
    "same": lambda ink: equal_marks(ink) == 2,
    "twins": lambda ink: equal_marks(ink) == 2,
    "identity": lambda ink: equal_marks(ink) == 4,
    "left_of": is_left,
    "inside": is_inside,
    "nearest": disc_is_nearer,
    "path": are_joined,
}
MARKS = {"same": 2, "twins": 4, "identity": 8}


@pytest.mark.parametrize("side", [24, 32, 64])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_answer_is_in_the_pixels(problem: str, side: int) -> None:
    pixels, answers = draw(problem, np.arange(300) + 10**6, side)
    assert pixels.shape == (300, side, side, 3)
    ink = pixels[..., 0] > 100
    assert [ORACLES[problem](each) for each in ink] == answers.tolist()
    assert np.abs(answers.mean() - 0.5) < 0.1
    if problem in MARKS:
        assert {len(cells(each)) for each in ink} == {MARKS[problem]}
        assert {equal_marks(each) for each in ink[~answers]} == {1}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_images_are_pinned_and_the_same_alone(problem: str) -> None:
    indices = np.array([0, 1, 10**9, FIRST_VALIDATION_INDEX])
    pixels, answers = draw(problem, indices, 32)
    for index, image, answer in zip(indices, pixels, answers, strict=True):
        alone = draw(problem, np.array([index]), 32)
        np.testing.assert_array_equal(alone[0][0], image)
        assert alone[1][0] == answer
    assert hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:16] == PINNED[problem]


def test_nothing_but_two_dashes_tells_whether_a_path_joins() -> None:
    """Both answers drawn for one image: the same dots, and as much ink."""
    indices = np.arange(200)
    yes, no = (PROBLEMS["path"](np.full(200, answer), indices, 32) for answer in (True, False))
    assert set((yes & ~no).sum(axis=(1, 2)).tolist()) <= {2, 3, 4, 5, 6}
    assert set((no & ~yes).sum(axis=(1, 2)).tolist()) <= {2, 3, 4, 5, 6}


def test_every_epoch_has_new_images_and_an_image_comes_back() -> None:
    data = open_dataset("relations", "train", problem="twins", size=20)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(20)]
    images, labels = data.collate(data.__getitems__(keys))
    assert images.shape == (40, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in images}) == 40
    assert [int(data[key][1]) for key in keys] == labels.tolist()
    assert torch.equal(data[1, 3][0], images[23])
    assert labels[:20].tolist() == data.labels.tolist()
    assert abs(float(images.mean())) < 0.3
    held_out = open_dataset("relations", "val", problem="twins", size=20)
    assert not {image.tobytes() for image in held_out.pixels(keys[:20])} & {
        image.tobytes() for image in data.pixels(keys)
    }
    assert data.fingerprint() != open_dataset("relations", "train", problem="same", size=20).fingerprint()
    with pytest.raises(IndexError, match="image 20 of 20"):
        data[0, 20]
    with pytest.raises(ValueError, match="each epoch of relations has other images"):
        data[3]
    assert torch.equal(held_out[3][0], held_out[0, 3][0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"problem": "sam"}, "problem is 'sam': choose same"),
        (
            {"problem": "identity", "image_size": 20},
            "identity in images of 20 pixels: wanted a multiple of 4, 24",
        ),
        ({"image_size": 33}, "same in images of 33 pixels: wanted a multiple of 4, 16 or more"),
        ({"augment": "crop_flip"}, "augment for relations is 'crop_flip': choose none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_dataset("relations", "train", **options)
    assert set(LEAST) == set(PROBLEMS)


def test_recipes_name_the_problem() -> None:
    assert parse_recipe({"data": {"name": "relations", "problem": "path"}}, "").data.problem == "path"
    with pytest.raises(Exception, match=r"data\.problem goes with data\.name relations, not shapes"):
        parse_recipe({"data": {"problem": "path"}}, "")
    Data(name="relations", train_size=10**8)  # never all in memory
    known, _ = get_args(Data.model_fields["problem"].annotation)
    assert get_args(known) == tuple(PROBLEMS)
