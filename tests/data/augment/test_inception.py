"""RandAugment: each image gets every one of its N operations, at the magnitude that is asked for."""

import pickle
import random
from contextlib import suppress

import numpy as np
import pytest
import timm.data.auto_augment as timms
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from attneck.data.augment.inception import Inception
from attneck.data.sampling import generators


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Name and magnitude of each operation that timm has applied; the image is left as it is."""
    record: list[tuple[str, float]] = []

    def stand_in(name: str) -> None:
        def apply(image: Image.Image, magnitude: float, **_: object) -> Image.Image:
            record.append((name, magnitude))
            return image

        monkeypatch.setitem(timms.NAME_TO_OP, name, apply)
        monkeypatch.setitem(timms.LEVEL_TO_ARG, name, lambda magnitude, _: (magnitude,))

    for name in list(timms.NAME_TO_OP):
        stand_in(name)
    return record


@pytest.mark.parametrize(("layers", "magnitude"), [(1, 10), (2, 10), (2, 15), (2, 24), (3, 0)])
def test_every_operation_is_applied_at_its_magnitude(
    applied: list[tuple[str, float]], layers: int, magnitude: int
) -> None:
    transform, image = Inception(16, layers, magnitude), np.zeros((30, 20, 3), dtype=np.uint8)
    for draw in range(200):
        before = len(applied)
        with generators() as reseed:
            reseed(draw)
            transform(image)
        assert len(applied) - before == layers
    assert {given for _, given in applied} == {magnitude}
    assert len({name for name, _ in applied}) == 15


def test_no_layers_are_no_operations(applied: list[tuple[str, float]]) -> None:
    Inception(16)(np.zeros((30, 20, 3), dtype=np.uint8))
    assert not applied


def test_magnitudes_over_timms_ten_still_turn_further() -> None:
    """By the paper's scale 10 is 30 degrees: timm's own cap would leave 24 at 30."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    turned = []
    for magnitude in (10, 24):
        operations = Inception(32, 1, magnitude).randaugment.ops  # type: ignore[union-attr]
        (rotate,) = [op for op in operations if op.name == "Rotate"]
        rotate.aug_fn = lambda image, degrees, **_: turned.append(abs(degrees)) or image
        rotate(image)
    assert turned == pytest.approx([30, 72])


@pytest.mark.parametrize(("side", "wanted"), [(64, 0.45 * 64), (224, 100), (384, 100)])
def test_large_images_are_shifted_by_pixels(side: int, wanted: float) -> None:
    """As in EfficientNet's code, where timm goes by a share of the side."""
    operations = Inception(96, 1, 10).at(side).randaugment.ops  # type: ignore[union-attr]
    (shift,) = [op for op in operations if op.name == "TranslateXRel"]
    shifted: list[float] = []
    shift.aug_fn = lambda image, share, **_: shifted.append(abs(share) * side) or image
    shift(Image.new("RGB", (side, side)))
    assert shifted == pytest.approx([wanted])


def test_what_is_turned_into_view_is_grey() -> None:
    operations = Inception(32, 1, 10).randaugment.ops  # type: ignore[union-attr]
    (rotate,) = [op for op in operations if op.name == "Rotate"]
    turned = np.array(rotate(Image.new("RGB", (32, 32), "white")))
    assert turned[0, 0].tolist() == [128] * 3
    assert turned[16, 16].tolist() == [255] * 3


@pytest.mark.parametrize("of", [(60, 41), (9, 30), (300, 200)])
def test_it_is_torchvisions(of: tuple[int, int]) -> None:
    """The same draws and the same bits as v2's RandomResizedCrop and RandomHorizontalFlip of a tensor."""
    pixels = np.random.default_rng(1).integers(0, 256, (of[1], of[0], 3), dtype=np.uint8)
    image, ours = Image.fromarray(pixels), Inception(24)
    theirs = v2.Compose([v2.RandomResizedCrop(24), v2.RandomHorizontalFlip()])
    for seed in range(12):
        with ours.generators() as reseed:
            reseed(seed)
            found = ours(np.array(image.crop(ours.box(image.size))))
        with generators() as reseed:
            reseed(seed)
            wanted = theirs(pil_to_tensor(image))
        np.testing.assert_array_equal(found, wanted.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("layers", [0, 2])
def test_the_global_generators_are_left_alone(layers: int) -> None:
    def states() -> list[bytes]:
        states = [random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()]
        return [pickle.dumps(state) for state in states]

    before, transform = states(), Inception(24, layers)
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    with suppress(KeyboardInterrupt), transform.generators() as reseed:
        reseed(3)
        first = transform(image)
        transform(image)
        reseed(3)
        np.testing.assert_array_equal(first, transform(image))
        raise KeyboardInterrupt
    assert states() == before
