"""ResNet's augmentation: where its squares lie, how large they are, and what becomes of the colours."""

import numpy as np
import pytest
import torch

from attneck.data.augment.scale_crop import ScaleCrop


@pytest.mark.parametrize("of", [(500, 375), (375, 500), (300, 300), (4, 9), (1, 1)])
@pytest.mark.parametrize("size", [224, 64])
def test_a_square_is_224_pixels_of_a_shorter_side_of_256_to_480(of: tuple[int, int], size: int) -> None:
    torch.manual_seed(0)
    transform, shorter = ScaleCrop(size), min(of)
    boxes = np.array([transform.box(of) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    sides = right - left
    assert (sides == bottom - top).all()
    assert boxes.min() >= 0
    assert (right <= of[0]).all()
    assert (bottom <= of[1]).all()
    lengths = 224 * shorter / sides  # of the shorter side, where 224 pixels are taken
    if shorter > 100:
        assert 250 < lengths.min() < 262
        assert 470 < lengths.max() < 490
        assert lengths.mean() == pytest.approx((256 + 480) / 2, rel=0.02)  # all lengths are as likely
        assert {0, 1} <= {*np.unique((left + sides == of[0]).astype(int))}
        places = left / (of[0] - sides)
        assert places.mean() == pytest.approx(0.5, abs=0.03)


def test_the_pixels_are_a_flip_and_one_shift_of_all_colours() -> None:
    """Along ImageNet's principal components, of which the first is brightness."""
    torch.manual_seed(0)
    part = np.random.default_rng(0).integers(100, 150, (40, 40, 3), dtype=np.uint8)
    shifts, flips = [], 0
    for _ in range(400):
        image = ScaleCrop(40)(part).astype(int)
        for flipped, whole in ((0, part), (1, part[:, ::-1])):
            shift = image - whole
            if (np.ptp(shift, axis=(0, 1)) <= 0).all():
                shifts.append(shift[0, 0])
                flips += flipped
                break
        else:
            pytest.fail("neither the part nor its mirror image, in other light")
    assert 150 < flips < 250
    found = np.cov(np.array(shifts).T / 255)
    values, components = np.linalg.eigh(found - np.eye(3) / 12 / 255**2)  # without what rounding adds
    assert values[::-1] ** 0.5 == pytest.approx([0.02175, 0.00188, 0.00045], rel=0.35)
    assert values[2] ** 0.5 == pytest.approx(0.02175, rel=0.1)
    for number, component in enumerate([[0.5675, 0.5808, 0.5836], [0.7192, -0.0045, -0.6948]]):
        assert abs(components[:, 2 - number] @ component) > 0.98


def test_white_stays_white_in_a_brighter_light() -> None:
    torch.manual_seed(0)
    black, white = (np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 255))
    for _ in range(50):
        assert ScaleCrop(8)(black).max() < 50
        assert ScaleCrop(8)(white).min() > 205


def test_it_is_the_same_for_the_same_draws_and_at_another_size() -> None:
    part = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    images = []
    for _ in range(2):
        with ScaleCrop(24).generators() as reseed:
            reseed(5)
            images.append(ScaleCrop(24)(part))
    np.testing.assert_array_equal(*images)
    other = ScaleCrop(24).at(16)
    assert isinstance(other, ScaleCrop)
    assert other(part).shape == (16, 16, 3)


def test_it_runs_in_a_process_under_autocast() -> None:
    """As the training process is in bfloat16 on a CPU, which loads for itself with no workers."""
    images = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            images.append(ScaleCrop(8)(np.full((8, 8, 3), 100, dtype=np.uint8)))
    assert np.array_equal(*images)
