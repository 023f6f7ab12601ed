"""Detections drawn where they are, whatever the size of the picture."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle
from PIL import Image

from attneck.explain.detections import (
    ALPHA,
    FONT_SIZE,
    LONGEST,
    beside,
    colour_of,
    contrast,
    draw,
    free_place,
    ink_on,
    numbered,
)

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
    colour = np.array(colour_of(0))
    assert (picture[25 * scale, 20 * scale] == colour).all()  # an edge of the box
    label = picture[10 * scale - 15 : 10 * scale - 2, 20 * scale + 3 : 20 * scale + 60].reshape(-1, 3)
    assert (label == colour).all(1).mean() > 0.5  # behind the text, which is black
    assert (label < 40).all(1).any()
    inside = picture[30 * scale, 50 * scale]
    assert (inside > 0).any() == masked
    assert (np.abs(inside - ALPHA * colour) <= 1).all() or not masked
    assert not picture[5 * scale, 80 * scale].any()  # outside


def test_masks_that_overlap_are_seen_through_the_best_on_top():
    two = [detection(20, 10, 40, 30), detection(30, 10, 40, 30) | {"score": 0.8}]
    picture = np.asarray(draw(Image.new("RGB", (WIDTH, HEIGHT), "white"), two)).astype(int)
    scale = LONGEST // WIDTH
    best, other = np.array(colour_of(0)), np.array(colour_of(1))
    alone = (1 - ALPHA) * 255 + ALPHA * other
    both = (1 - ALPHA) * alone + ALPHA * best
    assert (np.abs(picture[30 * scale, 65 * scale] - alone) <= 1).all()
    assert (np.abs(picture[30 * scale, 50 * scale] - both) <= 2).all()


def test_each_object_has_its_own_colour_and_text_that_can_be_read():
    colours = [colour_of(number) for number in range(300)]
    assert len(set(colours)) == 300
    assert min(contrast(ink_on(colour), colour) for colour in colours) >= 4.5
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # WCAG's example


def test_an_object_has_one_colour_in_pictures_of_one_image():
    def seen(x: int, category: str = "disc", **score: float) -> dict:
        return {"bbox": [x, 10, 40, 30], "category": category, **score}

    there = [seen(0), seen(50), seen(50, "ring")]
    first = [seen(55, score=0.5), seen(52, score=0.9), seen(0, "ring", score=0.8)]
    second = [seen(1, score=0.3), seen(0, "ring", score=0.1), seen(16, score=0.2)]
    assert numbered([there, first, second]) == [[0, 1, 2], [4, 1, 3], [0, 3, 5]]
    image = Image.new("RGB", (WIDTH, HEIGHT))
    edges = [
        np.asarray(draw(image, rows, numbers))[25 * LONGEST // WIDTH, x * LONGEST // WIDTH]
        for rows, numbers, x in zip([there, second], numbered([there, second]), (0, 1), strict=True)
    ]
    assert (np.stack(edges) == colour_of(0)).all()


def test_labels_stand_beside_objects_and_each_other():
    """A row of boxes that are narrower than their labels; and one in the upper corner."""
    covered = np.zeros((400, 800), dtype=bool)
    boxes = [(20 + 60 * n, 100, 60 + 60 * n, 160) for n in range(8)] + [(0, 0, 30, 30), (700, 390, 800, 400)]
    for x0, y0, x1, y1 in boxes:
        covered[y0:y1, x0:x1] = True
    taken = []
    for box in boxes:
        place = free_place(box, (90, 18), covered, taken)
        taken.append(place)
        assert (place[2] - place[0], place[3] - place[1]) == (90, 18)
        assert 0 <= place[0] < place[2] <= 800
        assert 0 <= place[1] < place[3] <= 400
        assert not covered[place[1] : place[3], place[0] : place[2]].any(), box
    for number, one in enumerate(taken):
        for other in taken[:number]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_an_object_that_fills_the_picture_has_its_label_inside():
    assert free_place((0, 0, 200, 100), (50, 18), np.ones((100, 200), dtype=bool), []) == (0, 0, 50, 18)


def test_a_label_is_as_large_as_the_picture_asks_for():
    """What is shown half as large has its label twice as large."""
    photo = Image.new("RGB", (4 * LONGEST, LONGEST))
    box = {"bbox": [0, 600, 100, 100], "category_id": 1, "category": "disc", "score": 0.5}
    picture = np.asarray(draw(photo, [box]))
    filled = (picture == colour_of(0)).all(2)[:, : LONGEST // 4]
    assert filled.any(1).sum() > 100 + 4 * FONT_SIZE


def test_a_box_of_no_size_and_one_that_leaves_the_picture_are_drawn():
    odd = {"category_id": 1, "category": "disc", "score": 0.5}
    boxes = [[10, 10, 0.01, 0.01], [-20, -20, 30, 30], [90, 40, 50, 50]]
    picture = np.asarray(draw(Image.new("RGB", (WIDTH, HEIGHT)), [odd | {"bbox": box} for box in boxes]))
    assert all((picture == colour_of(number)).all(2).any() for number in range(3))


def test_no_detection_leaves_the_image():
    picture = np.asarray(draw(Image.new("RGB", (WIDTH, HEIGHT), "white"), []))
    assert (picture == 255).all()


def test_a_large_image_keeps_its_size():
    assert draw(Image.new("RGB", (LONGEST, 900)), []).size == (LONGEST, 900)


def test_side_by_side_has_a_title_each():
    figure = beside([Image.new("RGB", (20, 10))] * 2, ["one", "other"])
    assert [axes.get_title() for axes in figure.axes] == ["one", "other"]
