"""Images keep their scale in training; evaluation fits them into a size, and boxes and masks come back."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from attneck import imagenet
from attneck.detection.rcnn import faster_rcnn
from attneck.detection.transform import Transform, canvas

MEAN = torch.tensor(imagenet.MEAN)[:, None, None]
STD = torch.tensor(imagenet.STD)[:, None, None]


def images_of(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def test_training_leaves_the_scale_alone():
    """Whatever `size` is: the data set has jittered the image, and that is not undone."""
    transform = Transform((1024, 1024), 64).train()
    images = images_of((128, 128), (90, 200))
    targets = [
        {"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]]), "masks": torch.ones(1, 128, 128)},
        {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 90, 200)},
    ]
    batch, changed = transform(images, targets)
    assert batch.image_sizes == [(128, 128), (90, 200)]
    assert batch.tensors.shape == (2, 3, 128, 256)
    for lain, image in zip(batch.tensors, images, strict=True):
        height, width = image.shape[1:]
        torch.testing.assert_close(lain[:, :height, :width], (image - MEAN) / STD)
        assert not lain[:, height:].any()
        assert not lain[:, :, width:].any()
    for target, given in zip(changed, targets, strict=True):
        assert all(target[key] is given[key] for key in given)


@pytest.mark.parametrize("size", [(128, 128), (1024, 1024), (128, 192), (1280, 1280)])
def test_an_image_of_its_size_is_not_resampled(size):
    transform = Transform(size, 64).eval()
    (image,) = images_of(size)
    batch, _ = transform([image])
    torch.testing.assert_close(batch.tensors[0], (image - MEAN) / STD)


@pytest.mark.parametrize(
    ("size", "image", "fitted"),
    [
        ((256, 256), (100, 200), (128, 256)),
        ((256, 256), (480, 640), (192, 256)),
        ((256, 256), (300, 100), (256, 85)),
        ((256, 256), (300, 118), (256, 101)),  # 100.7, to the nearest
        ((256, 256), (3, 3000), (1, 256)),
        ((128, 256), (100, 100), (128, 128)),
        ((100, 100), (50, 20), (100, 40)),
    ],
)
def test_evaluation_fits_an_image_into_the_size(size, image, fitted):
    """The longer side is the square's, the other in proportion; the batch is the canvas whatever is on it."""
    transform = Transform(size, 64).eval()
    batch, _ = transform([torch.full((3, *image), 0.25)])
    assert batch.image_sizes == [fitted]
    assert tuple(batch.tensors.shape[2:]) == canvas(size, 64)
    height, width = fitted
    flat = ((0.25 - MEAN) / STD).expand(3, *fitted)
    torch.testing.assert_close(batch.tensors[0, :, :height, :width], flat)
    assert not batch.tensors[0, :, height:].any()
    assert not batch.tensors[0, :, :, width:].any()


@pytest.mark.parametrize("image", [(512, 300), (200, 640), (90, 64)])
def test_evaluation_resizes_as_pillow_does(image):
    """Bilinear over all pixels that a new one covers; without antialias thin lines would come and go."""
    transform = Transform((128, 128), 64).eval()
    pixels = images_of(image)[0]
    pixels[:, :, ::4] = 1  # lines that a sample of two pixels in four or five misses
    batch, _ = transform([pixels])
    height, width = batch.image_sizes[0]
    wanted = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))
        for channel in pixels.numpy()
    ]
    found = batch.tensors[0, :, :height, :width] * STD + MEAN
    torch.testing.assert_close(found, torch.from_numpy(np.stack(wanted)), rtol=0, atol=1e-4)


def test_what_is_found_comes_back_in_the_images_pixels():
    transform = Transform((256, 256), 64).eval()
    images = images_of((100, 200), (512, 300))
    wanted = [torch.tensor([[10.0, 20.0, 60.0, 90.0]]), torch.tensor([[0.0, 0.0, 300.0, 512.0]])]
    batch, _ = transform(images)
    found = []
    for boxes, image, (height, width) in zip(wanted, images, batch.image_sizes, strict=True):
        ratio = torch.tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
        found.append({"boxes": boxes * ratio, "masks": torch.ones(1, 1, 28, 28)})
    sizes = [tuple(image.shape[1:]) for image in images]
    for boxes, image, back in zip(
        wanted, images, transform.postprocess(found, batch.image_sizes, sizes), strict=True
    ):
        torch.testing.assert_close(back["boxes"], boxes, rtol=1e-5, atol=1e-3)
        mask = back["masks"][0, 0] > 0.5
        assert mask.shape == image.shape[1:]
        full = torch.zeros_like(mask)
        x0, y0, x1, y1 = boxes[0].int().tolist()
        full[y0:y1, x0:x1] = True
        assert (mask & full).sum() > 0.95 * (mask | full).sum()


def test_the_size_can_be_changed():
    transform = Transform((1024, 1024), 64).eval()
    assert "(1024, 1024)" in repr(transform)
    transform.size = (128, 256)
    assert transform(images_of((50, 50)))[0].tensors.shape == (1, 3, 128, 256)
    for theirs in ("min_size", "max_size"):  # which would change nothing
        with pytest.raises(AttributeError, match=rf"{theirs}=64: .* `size`, \(128, 256\): set that"):
            setattr(transform, theirs, 64)


def test_canvas():
    assert canvas((1024, 1280), 64) == (1024, 1280)
    assert canvas((1, 129), 64) == (128, 192)


def test_bytes_are_refused():
    with pytest.raises(TypeError, match=r"range \[0, 1\]"):
        Transform((64, 64), 64)([torch.zeros(3, 8, 8, dtype=torch.uint8)])


def test_images_are_normalised_as_the_backbone_wants_them():
    """By timm's `pretrained_cfg`, of weights that were trained with 0.5 say; else ImageNet's."""
    small = {"channels": 8, "box_features": 8, "proposals": 10}
    backbone = timm.create_model("resnet10t", channels=[8, 8, 8, 8], stem_width=8)
    plain = faster_rcnn(backbone, 3, 64, **small).transform
    assert (plain.image_mean, plain.image_std) == ([*imagenet.MEAN], [*imagenet.STD])
    other = timm.create_model("resnet10t", channels=[8, 8, 8, 8], stem_width=8)
    other.pretrained_cfg = {**other.pretrained_cfg, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5)}
    found = faster_rcnn(other, 3, 64, **small).transform
    assert (found.image_mean, found.image_std) == ([0.5, 0.5, 0.5], [0.25, 0.5, 0.5])
