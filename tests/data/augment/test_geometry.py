"""Box, mask and image stay in step through every augmentation."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from attneck.data.augment.geometry import FILL, Sample, mirror, resize_crop_pad, resized, visible
from attneck.data.augment.ssd import SSDAugment
from attneck.imagenet import MEAN

SSD = SSDAugment(48)


@st.composite
def samples(draw: Any, most: int = 4) -> Sample:
    """An image with rectangles: each object's mask is its box, and its colour is 40 · (its place + 1)."""
    height, width = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    boxes, masks = [], []
    for i in range(draw(st.integers(0, most))):
        x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
        boxes.append([x0, y0, x1, y1])
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[y0:y1, x0:x1] = 1
        masks.append(mask)
        image[y0:y1, x0:x1] = 40 * (i + 1)
    return Sample(
        image,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(masks, dtype=np.uint8).reshape(-1, height, width),
        np.arange(len(boxes)),
    )


def tight(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def holds(before: Sample, after: Sample, side: int | None) -> None:
    """What holds after every change."""
    if side:
        assert after.image.shape == (side, side, 3)
    height, width = after.image.shape[:2]
    assert (after.image.dtype, after.boxes.dtype, after.masks.dtype) == (np.uint8, np.float32, np.uint8)  # type: ignore[union-attr]
    assert after.boxes.shape == (len(after.kept), 4)
    assert after.masks is not None
    assert after.masks.shape == (len(after.kept), height, width)
    assert (np.diff(after.kept) > 0).all()
    assert set(after.kept) <= set(before.kept)
    assert (after.boxes >= 0).all()
    assert (after.boxes <= [width, height] * 2).all()
    assert (after.boxes[:, :2] < after.boxes[:, 2:]).all()
    assert after.masks.max(initial=0) <= 1
    for box, mask in zip(after.boxes, after.masks, strict=True):
        # A pixel belongs to a mask by its centre, so that a side is half a pixel off and, on a ratio
        # that was rounded to whole pixels, a little more.
        np.testing.assert_allclose(tight(mask), box, rtol=0, atol=1)


def inner_colours(sample: Sample, i: int, margin: int) -> np.ndarray:
    """The pixels of an object that are `margin` away from its sides, [n, 3]."""
    x0, y0, x1, y1 = np.round(sample.boxes[i]).astype(int)
    rows, columns = slice(y0 + margin, max(0, y1 - margin)), slice(x0 + margin, max(0, x1 - margin))
    return sample.image[rows, columns].reshape(-1, 3)


shares = st.floats(0, 1, exclude_max=True)


@settings(max_examples=150, deadline=None)
@given(samples(most=1), st.integers(16, 64), st.floats(0.1, 2), shares, shares, st.booleans())
def test_resizing_and_cutting_keep_step(
    before: Sample, side: int, factor: float, top: float, left: float, flip: bool
) -> None:
    after = mirror(before) if flip else before
    after = visible(resize_crop_pad(after, side, factor, (top, left)), smallest=1.0)
    holds(before, after, side)
    ratio = factor * side / max(before.image.shape)
    for i in range(len(after.kept)):
        colours = inner_colours(
            after, i, margin=3 + int(ratio)
        )  # resizing mixes nothing from outside into it
        np.testing.assert_array_less(abs(colours.astype(int) - 40), 2)


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(0, 2**62))
def test_ssds_keeps_step(before: Sample, seed: int) -> None:
    after = visible(SSD(before, seed))
    holds(before, after, 48)
    again = visible(SSD(before, seed))
    np.testing.assert_array_equal(after.image, again.image)
    np.testing.assert_array_equal(after.boxes, again.boxes)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_mirroring_twice_changes_nothing(before: Sample) -> None:
    once = mirror(before)
    holds(before, once, None)
    for part, other in zip(before, mirror(once), strict=True):
        np.testing.assert_array_equal(part, other)


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(16, 64), st.floats(0.1, 2), shares, shares)
def test_it_is_torchvisions_resize_crop_and_pad(
    before: Sample, side: int, factor: float, top: float, left: float
) -> None:
    after = resize_crop_pad(before, side, factor, (top, left))
    height, width = before.image.shape[:2]
    rows, columns = resized(height, width, factor * side)
    tall, wide = min(rows, side), min(columns, side)
    y, x = int(top * (rows - tall + 1)), int(left * (columns - wide + 1))
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(before.boxes), format="XYXY", canvas_size=(height, width)
    )
    boxes = F.crop(F.resize(boxes, [rows, columns]), y, x, tall, wide)
    picture = F.resize(Image.fromarray(before.image), [rows, columns], v2.InterpolationMode.BILINEAR)
    image = np.asarray(F.crop(picture, y, x, tall, wide))
    whole = (boxes[:, :2] < boxes[:, 2:]).all(dim=1).numpy()  # torchvision clips what is outside elsewhere
    np.testing.assert_allclose(after.boxes[whole], boxes.numpy()[whole], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(after.image[:tall, :wide].astype(int), image.astype(int), rtol=0, atol=2)
    assert (after.image[tall:] == FILL).all()
    assert (after.image[:, wide:] == FILL).all()


@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 60), (50, 50), (100, 1)])
def test_an_image_is_fitted_whole(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    sample = Sample(image, np.array([[0, 0, width, height]], np.float32), None, np.arange(1))
    after = resize_crop_pad(sample, 80)
    rows, columns = resized(height, width, 80)
    assert max(rows, columns) == 80
    assert after.boxes.tolist() == [[0, 0, columns, rows]]
    assert (after.image[:rows, :columns] == 0).all()
    assert (after.image == 0).sum() == rows * columns * 3


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(16, 64), st.floats(0.1, 2))
def test_it_scales_as_torchvisions_scale_jitter_does(before: Sample, side: int, factor: float) -> None:
    """Up to a pixel: torchvision rounds down, the paper's code to the nearest."""
    height, width = before.image.shape[:2]
    assume(factor * side * min(height, width) >= max(height, width))  # torchvision fails on a side of 0
    image = torch.from_numpy(before.image).permute(2, 0, 1)
    wanted = v2.ScaleJitter((side, side), (factor, factor))(image).shape[1:]
    for ours, theirs in zip(resized(height, width, factor * side), wanted, strict=True):
        assert theirs <= ours <= theirs + 1


def test_what_is_rounded_goes_to_the_nearest() -> None:
    """Sides, and the colour of what is padded."""
    assert resized(150, 301, 200) == (100, 200)  # of 99.7
    assert resized(301, 150, 200) == (200, 100)
    assert np.abs(FILL - 255 * np.array(MEAN)).max() <= 0.5


def test_every_cut_is_reached() -> None:
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.array([[0, 0, 8, 8]], np.float32), None, np.arange(1))
    ends = [resize_crop_pad(sample, 8, 2.0, (0.999, corner)) for corner in (0.0, 0.999)]
    assert [after.boxes.tolist() for after in ends] == [[[0, 0, 8, 8]]] * 2
    # A dark stripe at the right edge is seen only when the left is cut away.
    sample.image[:, 3:] = 255
    assert [int(resize_crop_pad(sample, 8, 2.0, (0.5, corner)).image.min()) for corner in (0.0, 0.999)] == [
        0,
        255,
    ]


def test_a_mask_s_pixel_is_that_in_the_middle_of_what_it_covers() -> None:
    mask = np.zeros((1, 9, 9), np.uint8)
    mask[:, 1::3, 1::3] = 1
    sample = Sample(np.zeros((9, 9, 3), np.uint8), np.array([[0, 0, 9, 9]], np.float32), mask, np.arange(1))
    masks = resize_crop_pad(sample, 3).masks
    assert masks is not None
    assert masks.all()


def test_what_is_lost_is_dropped_with_its_place() -> None:
    boxes = np.array([[0, 0, 4, 4], [3, 3, 3, 6], [2, 2, 2.5, 8], [1, 1, 5, 5]], dtype=np.float32)
    masks = np.ones((4, 8, 8), dtype=np.uint8)
    masks[3] = 0
    sample = Sample(np.zeros((8, 8, 3), np.uint8), boxes, masks, np.array([4, 6, 7, 9]))
    assert visible(sample).kept.tolist() == [4, 7]
    assert visible(sample, smallest=1.0).kept.tolist() == [4]
    assert visible(sample, smallest=4.0).kept.tolist() == [4]  # just so large
    assert visible(sample._replace(masks=None)).kept.tolist() == [4, 7, 9]


def test_ssd_keeps_the_objects_whose_centre_is_in_the_cut() -> None:
    """Over many seeds: colours, sizes and mirror images differ, and the object is never lost whole."""
    image = np.full((60, 80, 3), 90, dtype=np.uint8)
    image[20:40, 30:60] = (200, 30, 30)
    mask = np.zeros((1, 60, 80), dtype=np.uint8)
    mask[0, 20:40, 30:60] = 1
    sample = Sample(image, np.array([[30, 20, 60, 40]], np.float32), mask, np.arange(1))
    widths = []
    for seed in range(60):
        after = visible(SSD(sample, seed))
        assert after.kept.tolist() == [0]
        widths.append(float(after.boxes[0, 2] - after.boxes[0, 0]))
    assert min(widths) < 8 < 40 < max(widths)
    empty = Sample(image, np.zeros((0, 4), np.float32), np.zeros((0, 60, 80), np.uint8), np.arange(0))
    assert visible(SSD(empty, 3)).boxes.shape == (0, 4)
