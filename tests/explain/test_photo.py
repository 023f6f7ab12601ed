"""Where a map lies in the photo: against photos whose colours say where each pixel was."""

import numpy as np
import pytest
import torch
from PIL import Image

from attneck.data.readers import folder
from attneck.data.readers.folder import resize_and_centre
from attneck.detection.transform import Transform
from attneck.explain.photo import Window, centred, fitted

PHOTOS = {"wide": (500, 300), "tall": (211, 640), "smaller than the input": (40, 30), "square": (256, 256)}


def coordinates(size: tuple[int, int]) -> np.ndarray:
    """[2, height, width]: x and y of each pixel's centre."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y]).astype(np.float32)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
def test_a_classifiers_pixel_is_where_it_was_cut_from(size: tuple[int, int], crop_pct: float) -> None:
    side = 96
    given = [
        np.asarray(resize_and_centre(Image.fromarray(axis), side, crop_pct)) for axis in coordinates(size)
    ]
    window = centred(size, side, crop_pct)
    inner = range(8, side - 8)  # at the edges of the photo resizing has fewer pixels to weigh
    for row in inner:
        for column in (8, 40, side - 9):
            left, top, right, bottom = window.of_cell(row, column, (side, side))
            assert given[0][row, column] == pytest.approx(
                (left + right) / 2, abs=0.02 * (right - left) + 0.01
            )
            assert given[1][row, column] == pytest.approx(
                (top + bottom) / 2, abs=0.02 * (bottom - top) + 0.01
            )


@pytest.mark.parametrize("crop_pct", [0.875, 1.15])
def test_a_long_photo_is_not_resized_whole(crop_pct: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut out is the same, to one step; of one pixel by a million nothing larger is made."""
    noise = Image.effect_noise((30, 600), 90)
    cut = resize_and_centre(noise, 64, crop_pct)
    monkeypatch.setattr(folder, "LONG", 1000)
    assert np.abs(np.asarray(cut, int) - np.asarray(resize_and_centre(noise, 64, crop_pct), int)).max() <= 1
    monkeypatch.undo()
    made = []
    own = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args: made.append(own(*args)) or made[-1])
    assert resize_and_centre(Image.new("L", (1, 10**6)), 64, 0.875).size == (64, 64)
    assert [image.size for image in made] == [(64, 64)]


@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
def test_a_detectors_pixel_is_where_it_was_resized_from(size: tuple[int, int]) -> None:
    transform = Transform((128, 192), 64).eval()
    transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3
    x, y = torch.from_numpy(coordinates(size))
    images, _ = transform([torch.stack([x, y, x])])
    H, W = images.tensors.shape[2:]
    h, w = images.image_sizes[0]
    window = fitted(size, (h, w), (H, W))
    for row in range(8, h - 8, 5):
        for column in range(8, w - 8, 5):
            left, top, right, bottom = window.of_cell(row, column, (H, W))
            here = images.tensors[0, :2, row, column].tolist()
            middle = [(left + right) / 2, (top + bottom) / 2]
            assert here == pytest.approx(middle, abs=0.05 * max(1, right - left))


@pytest.mark.parametrize("window", [centred((90, 60), 32, 0.875), fitted((90, 60), (43, 64), (64, 64))])
def test_a_pixel_has_the_value_of_the_place_that_covers_it(window: Window) -> None:
    number = np.arange(35.0).reshape(7, 5)
    spread = window.spread(number)
    assert spread.shape == (60, 90)
    for y in range(60):
        for x in range(90):
            cell = window.cell(x + 0.5, y + 0.5, (7, 5))
            if cell is None:
                assert np.isnan(spread[y, x])
                continue
            assert spread[y, x] == number[cell]
            left, top, right, bottom = window.of_cell(*cell, (7, 5))
            assert left - 1e-9 <= x + 0.5 <= right + 1e-9
            assert top - 1e-9 <= y + 0.5 <= bottom + 1e-9
    assert set(number.ravel()) >= set(spread[~np.isnan(spread)].ravel())


@pytest.mark.parametrize(
    "window",
    [
        centred((90, 60), 32, 0.875),
        fitted((90, 60), (43, 64), (64, 64)),
        fitted((60, 90), (64, 43), (64, 64)),
    ],
)
def test_what_is_shown_of_a_map_are_the_places_that_cover_a_pixel(window: Window) -> None:
    number = np.arange(16.0 * 12).reshape(16, 12)
    spread = window.spread(number)
    assert set(window.shown(number).ravel()) == set(spread[~np.isnan(spread)].ravel())
