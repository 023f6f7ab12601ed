"""The pixels themselves say where an object is after every change of its image."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from attneck.data.augment.crop_flip import crop_flip
from attneck.data.augment.geometry import FILL, Sample, mirror, resize_crop_pad, visible
from attneck.data.augment.ssd import SSDAugment

SIDE = 48
HALF = (int(FILL[2]) + 255) / 2
"""Half-way between the colours of the two: where an edge is when it is drawn softly."""

shares = st.floats(0, 1, exclude_max=True)


@st.composite
def rectangles(draw: Any, least: int = 1, most: int = 90) -> Sample:
    """A white rectangle in an image of the colour that is also put around it."""
    height, width = draw(st.integers(least, most)), draw(st.integers(least, most))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    image = np.tile(FILL, (height, width, 1))
    image[y0:y1, x0:x1] = 255
    mask = np.zeros((1, height, width), dtype=np.uint8)
    mask[0, y0:y1, x0:x1] = 1
    return Sample(image, np.array([[x0, y0, x1, y1]], np.float32), mask, np.arange(1))


def box_of(seen: np.ndarray) -> list[int]:
    """The box of the pixels that are True, [H, W]."""
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def agree(after: Sample) -> None:
    """Box, mask and pixels of the rectangle, where it is still there and not too small to be seen."""
    height, width = after.image.shape[:2]
    assert len(after.boxes) == len(after.kept) <= 1
    assert after.masks is not None
    assert after.masks.shape == (len(after.kept), height, width)
    for box, mask in zip(after.boxes, after.masks, strict=True):
        assert (box >= 0).all()
        assert (box <= [width, height] * 2).all()
        assert (box[:2] < box[2:]).all()
        np.testing.assert_allclose(box_of(mask), box, rtol=0, atol=1)
        if (box[2:] - box[:2] >= 3).all():
            seen = after.image[..., 2] > HALF
            np.testing.assert_allclose(box_of(seen), box, rtol=0, atol=1)


@settings(max_examples=40)
@given(rectangles())
def test_mirrored_twice_it_is_itself(before: Sample) -> None:
    once = mirror(before)
    agree(once)
    x0, y0, x1, y1 = before.boxes[0]
    width = before.image.shape[1]
    assert once.boxes.tolist() == [[width - x1, y0, width - x0, y1]]
    for part, other in zip(before, mirror(once), strict=True):
        np.testing.assert_array_equal(part, other)


@settings(max_examples=200)
@given(rectangles(), st.integers(1, 64), st.floats(0.1, 4), shares, shares, st.booleans())
def test_resized_cut_and_padded(
    before: Sample, side: int, factor: float, top: float, left: float, flip: bool
) -> None:
    before = mirror(before) if flip else before
    after = resize_crop_pad(before, side, factor, (top, left))
    assert after.image.shape == (side, side, 3)
    agree(visible(after, smallest=1.0))


@settings(max_examples=40)
@given(rectangles(most=300), st.floats(0.001, 0.1) | st.floats(4, 50), shares, shares)
def test_scaled_beyond_reason(before: Sample, factor: float, top: float, left: float) -> None:
    agree(visible(resize_crop_pad(before, 32, factor, (top, left)), smallest=1.0))


@settings(max_examples=60)
@given(rectangles(least=8), st.floats(0.5, 2), shares, shares)
def test_no_box_is_lost_whose_pixels_are_seen(before: Sample, factor: float, top: float, left: float) -> None:
    after = visible(resize_crop_pad(before, SIDE, factor, (top, left)), smallest=1.0)
    seen = after.image[..., 2] > HALF
    if not len(after.kept) and seen.any():
        x0, y0, x1, y1 = box_of(seen)
        assert min(x1 - x0, y1 - y0) <= 2


whole = SSDAugment(SIDE)
# Without the change of colours, which the pixels are to be found by.
plain = SSDAugment(SIDE)
plain._transform = v2.Compose(plain._transform.transforms[1:])


@settings(max_examples=60)
@given(rectangles(least=8), st.integers(0, 2**62))
def test_ssds_zoom_cut_and_resizing(before: Sample, seed: int) -> None:
    after = visible(plain(before, seed))
    assert after.image.shape == (SIDE, SIDE, 3)
    agree(after)


@settings(max_examples=30)
@given(rectangles(most=8), st.integers(0, 2**62))
def test_ssds_takes_the_smallest_images(before: Sample, seed: int) -> None:
    after = visible(whole(before, seed))
    assert after.image.shape == (SIDE, SIDE, 3)
    assert len(after.boxes) == len(after.kept)


def test_ssds_takes_every_cut_of_a_small_image() -> None:
    """Three tenths of three pixels would be none."""
    image, boxes = np.full((3, 3, 3), 90, np.uint8), np.array([[0, 0, 3, 3]], np.float32)
    for seed in range(300):
        assert whole(Sample(image, boxes, None, np.arange(1)), seed).image.shape == (SIDE, SIDE, 3)


def test_ssds_resizes_as_it_is_scored() -> None:
    """By torchvision's SSD, which takes no mean over what a pixel covers."""
    (resize,) = [step for step in whole._transform.transforms if isinstance(step, v2.Resize)]
    image = torch.randint(0, 256, (3, 8 * SIDE, 8 * SIDE), dtype=torch.uint8)
    scored = F.interpolate(image[None] / 255, (SIDE, SIDE), mode="bilinear")[0]
    torch.testing.assert_close(resize(image) / 255, scored, rtol=0, atol=1.01 / 255)


def test_ssds_colours_keep_their_channels() -> None:
    """Red gets brighter or greyer, and its hue turns by 18 degrees at most: it never becomes another."""
    colours, red = whole._transform.transforms[0], tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8))
    red[0] = 200
    for seed in range(40):
        torch.manual_seed(seed)
        after = colours(red).float().mean((1, 2))
        assert after.argmax() == 0, seed


@settings(max_examples=30)
@given(rectangles(least=8), st.integers(0, 2**62))
def test_ssds_parts_one_by_one(before: Sample, seed: int) -> None:
    """Of torchvision's zoom-out and cut alone, whose edges are whole pixels: the pixels' box is exact."""
    image = tv_tensors.Image(torch.from_numpy(before.image).permute(2, 0, 1))
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(before.boxes), format="XYXY", canvas_size=tuple(image.shape[1:])
    )
    for step in plain._transform.transforms[:2]:
        torch.manual_seed(seed)
        picture, box = step(image, boxes)
        x0, y0, x1, y1 = np.clip(box[0].numpy(), 0, [picture.shape[2], picture.shape[1]] * 2)
        seen = (picture == 255).all(dim=0).numpy()
        if x0 < x1 and y0 < y1 and seen.any():
            assert box_of(seen) == [x0, y0, x1, y1]


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32))
def test_crop_and_flip_are_padding_slicing_and_mirroring(count: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    draws = rng.random((count, 3))
    pad = side // 8
    for image, draw, after in zip(images, draws, crop_flip(images, draws), strict=True):
        top, left = (int(share * (2 * pad + 1)) for share in draw[:2])
        wanted = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + side, left : left + side]
        np.testing.assert_array_equal(after, wanted[:, ::-1] if draw[2] < 0.5 else wanted)
