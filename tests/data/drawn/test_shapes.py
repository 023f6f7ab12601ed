"""The embedded set: pinned bits, tight boxes, disjoint masks, and too hard for a linear model."""

import hashlib
import time

import numpy as np
import pytest
import torch

from attneck.data import open_dataset
from attneck.data.drawn import shapes

PINNED = {
    (0, 0, 32, 1): "867e43b6d5bd689d8b5a062b08bea89faa7fced00f48487ab16f038733f6bb56",
    (0, 1, 32, 1): "9c8ad827b578ace909742688b80b30709efd15927496f4b3bbfb21a7d340ced9",
    (
        0,
        shapes.FIRST_VALIDATION_INDEX,
        32,
        1,
    ): "6af93e6f48c7acbdd1a09005d7d3df5a8e19431beec2ab944746cd55f20461b0",
    (7, 123, 48, 1): "1a80a78e78dc70e2f8d903ae87433b061030b48fea26e7910b1d02b53ae43669",
    (1, 5, 128, 4): "0d3bbab19747a408d233c0efd5e8e8622144d9fce8fe925e59200edc6fcbb455",
    (2, 6, 97, 9): "0cfa2db34828ab4149bec99007c93aa8f70c568c3b919f4117a2f577dace386c",
}


@pytest.mark.parametrize("arguments", PINNED)
def test_scenes_are_pinned(arguments: tuple[int, int, int, int]) -> None:
    drawn = shapes.scene(*arguments)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in drawn)).hexdigest()
    assert digest == PINNED[arguments]


def test_clear_shapes_are_the_same_shapes_and_easy_to_see() -> None:
    """Of the same kinds, without clutter; each stands out from its ground."""
    clear, plain = (open_dataset(name, "val", size=200) for name in ("clear_shapes", "shapes"))
    assert clear.classes == plain.classes
    np.testing.assert_array_equal(clear.labels, plain.labels)
    pixels = clear.pixels([(0, index) for index in range(200)])
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    assert digest == "263ac051e26d3e065f6659953dc53f4e2bf597acf96ddcca4c6e8c6d19881721"
    assert not np.array_equal(pixels, plain.pixels([(0, index) for index in range(200)]))
    for index in range(200):
        masks = shapes._draw(0, np.array([shapes.FIRST_VALIDATION_INDEX + index]), 32, 1, clear=True)[2]
        mask, image = masks[0, 0], pixels[index].astype(np.float64)
        assert mask.sum() > 40
        inside, outside = image[mask].mean(axis=0), image[~mask].mean(axis=0)
        assert np.abs(inside - outside).max() > 15


def test_a_scene_alone_is_the_scene_in_a_batch() -> None:
    indices = np.array([5, 0, 10**9, *range(20, 300)])
    pixels, labels = shapes.images(3, indices)
    for i in (0, 1, 2, 130, 200, 282):
        drawn = shapes.scene(3, int(indices[i]))
        np.testing.assert_array_equal(drawn.image, pixels[i])
        assert drawn.labels.tolist() == [labels[i]]
    assert not np.array_equal(shapes.scene(4, 5).image, pixels[0])


@pytest.mark.parametrize("kind", shapes.CLASSES)
def test_every_shape_lies_inside_its_circle(kind: str) -> None:
    line = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    inside = shapes._SHAPES[kind](u, v)
    radius = np.sqrt((u * u + v * v)[inside])
    assert 0.9 < radius.max() <= 1.001
    assert 0.1 < inside.sum() * 0.005**2 / np.pi <= 1.001


@pytest.mark.parametrize(("size", "objects"), [(24, 1), (32, 1), (48, 4), (80, 5), (97, 9), (160, 20)])
def test_boxes_are_tight_masks_disjoint_and_labels_in_range(size: int, objects: int) -> None:
    for index in range(40):
        drawn = shapes.scene(0, index, size, objects)
        assert drawn.image.shape == (size, size, 3)
        assert drawn.image.dtype == np.uint8
        assert drawn.labels.shape == (objects,)
        assert drawn.labels.min() >= 0
        assert drawn.labels.max() < len(shapes.CLASSES)
        assert drawn.boxes.shape == (objects, 4)
        assert drawn.boxes.dtype == np.float32
        assert drawn.masks.shape == (objects, size, size)
        assert drawn.masks.sum(axis=0).max() <= 1
        for box, mask in zip(drawn.boxes, drawn.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert len(rows) >= 8
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_neighbours_overlap_and_none_vanishes() -> None:
    touching, smallest = 0, 96 * 96
    for first in range(0, 512, 128):
        masks = shapes._draw(1, np.arange(first, first + 128), 96, 9)[2]
        smallest = min(smallest, int(masks.sum(axis=(2, 3)).min()))
        for scene_masks in masks:
            boxes = shapes._boxes(scene_masks)
            low, high = boxes[:, None, :2], boxes[None, :, 2:]
            meet = (low < high).all(axis=2)
            touching += int((meet & meet.T).sum() - 9) // 2
    assert touching > 100
    assert smallest > 20


@pytest.mark.parametrize(("size", "objects"), [(23, 1), (47, 2), (96, 17), (32, 0)])
def test_what_does_not_fit_is_refused(size: int, objects: int) -> None:
    with pytest.raises(ValueError, match=rf"{objects} objects in an image of {size} x {size} pixels: wanted"):
        shapes.scene(0, 0, size, objects)


def test_the_set_is_balanced_normalised_and_its_splits_disjoint() -> None:
    start = time.perf_counter()
    train = open_dataset("shapes", "train")
    assert time.perf_counter() - start < 20
    val = open_dataset("shapes", "val")
    assert (len(train), len(val), train.image_size, train.classes) == (10_000, 2_000, 32, shapes.CLASSES)
    assert np.bincount(train.labels).min() > 900
    pixels = train.images / np.float32(255)  # type: ignore[attr-defined]
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2), dtype=np.float64), train.mean, atol=0.006)
    np.testing.assert_allclose(pixels.std(axis=(0, 1, 2), dtype=np.float64), train.std, atol=0.006)
    seen = {image.tobytes() for dataset in (train, val) for image in dataset.images}  # type: ignore[attr-defined]
    assert len(seen) == 12_000
    other = open_dataset("shapes", "train", seed=1, size=20)
    assert torch.equal(other[0, 3][0], train[0, 3][0])


def test_a_linear_model_fails() -> None:
    train, val = open_dataset("shapes", "train", size=4000), open_dataset("shapes", "val", size=1000)
    (x, y), (val_x, val_y) = (
        data.collate(data.__getitems__([(0, i) for i in range(len(data))])) for data in (train, val)
    )
    x, val_x = x.flatten(1), val_x.flatten(1)
    assert max(_linear_accuracy(x, y, val_x, val_y, decay) for decay in (1e-2, 1.0)) < 0.35


def _linear_accuracy(
    x: torch.Tensor, y: torch.Tensor, val_x: torch.Tensor, val_y: torch.Tensor, decay: float
) -> float:
    """Of multinomial logistic regression on the pixels [B, 3·H·W]."""
    weight = torch.zeros(10, x.shape[1], requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=40)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + decay * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return ((val_x @ weight.T + bias).argmax(1) == val_y).float().mean().item()
