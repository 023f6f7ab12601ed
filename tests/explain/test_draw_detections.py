"""Detections drawn where they are, whatever the size of the picture."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle
from PIL import Image

from attneck.explain.detections import COLOURS, LONGEST, beside, draw

WIDTH, HEIGHT = 100, 50


def detection(x: int, y: int, width: int, height: int, masked: bool = True) -> dict:
    found = {"bbox": [x, y, width, height], "score": 0.9, "category_id": 1, "category": "disc"}
    if masked:
        mask = np.zeros((HEIGHT, WIDTH, 1), dtype=np.uint8, order="F")
        mask[y : y + height, x : x + width] = 1
        found["segmentation"] = rle.encode(mask)[0]
    return found


@pytest.mark.parametrize("masked", [True, False])
def test_drawn_where_it_is_on_a_larger_picture(masked):
    black = Image.new("RGB", (WIDTH, HEIGHT))
    picture = np.asarray(draw(black, [detection(20, 10, 40, 30, masked)])).astype(int)
    scale = LONGEST // WIDTH
    assert picture.shape == (HEIGHT * scale, WIDTH * scale, 3)
    colour = np.array([int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)])
    assert (picture[25 * scale, 20 * scale] == colour).all()  # an edge of the box
    corner = picture[10 * scale + 3 : 10 * scale + 15, 20 * scale + 3 : 20 * scale + 60].reshape(-1, 3)
    assert (corner == colour).all(1).mean() > 0.5  # behind the label, which is black
    assert (corner < 40).all(1).any()
    inside = picture[30 * scale, 50 * scale]
    assert (inside > 0).any() == masked
    assert (np.abs(inside - 0.45 * colour) <= 1).all() or not masked
    assert not picture[5 * scale, 80 * scale].any()  # outside


def test_masks_that_overlap_are_seen_through():
    two = [detection(20, 10, 40, 30), detection(30, 10, 40, 30) | {"category_id": 2}]
    picture = np.asarray(draw(Image.new("RGB", (WIDTH, HEIGHT), "white"), two)).astype(int)
    scale = LONGEST // WIDTH
    first, second = (np.array([int(COLOURS[n][i : i + 2], 16) for i in (1, 3, 5)]) for n in (1, 2))
    alone = 0.55 * 255 + 0.45 * first
    both = 0.55 * alone + 0.45 * second
    assert (np.abs(picture[30 * scale, 25 * scale] - alone) <= 1).all()
    assert (np.abs(picture[30 * scale, 50 * scale] - both) <= 2).all()


def test_no_detection_leaves_the_image():
    picture = np.asarray(draw(Image.new("RGB", (WIDTH, HEIGHT), "white"), []))
    assert (picture == 255).all()


def test_a_large_image_keeps_its_size():
    assert draw(Image.new("RGB", (LONGEST, 900)), []).size == (LONGEST, 900)


def test_side_by_side_has_a_title_each():
    figure = beside([Image.new("RGB", (20, 10))] * 2, ["one", "other"])
    assert [axes.get_title() for axes in figure.axes] == ["one", "other"]
