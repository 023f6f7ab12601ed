"""Mask and Faster R-CNN: they learn from any batch, also in bfloat16, and detect as torchvision's do."""

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert

from attneck.detection import faster_rcnn, mask_rcnn
from attneck.layers import MHSA2d
from attneck.measure import count
from attneck.models.catalog import create_model

SIDE = 128
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def thin(name: str = "maskrcnn_botnet26_thin", **options) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=4, image_size=SIDE, **options)


def batch_of(*counts: int, size: tuple[int, int] = (SIDE, SIDE)):
    """An image and its target for each count of objects: boxes of noise, and the masks that fill them."""
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for number in counts:
        centres = 30 + 60 * torch.rand(number, 2, generator=generator)
        sides = 16 + 40 * torch.rand(number, 2, generator=generator)
        boxes = box_convert(torch.cat([centres, sides], dim=1), "cxcywh", "xyxy")
        masks = torch.zeros(number, *size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, 4, (number,), generator=generator)
        images.append(torch.rand(3, *size, generator=generator))
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


def settle(model: nn.Module) -> nn.Module:
    """Make it evaluate as a trained network does: no branch is silent, and BatchNorm is no identity."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", ["maskrcnn_botnet26_thin", "fasterrcnn_resnet26_thin"])
def test_every_parameter_learns(name):
    model = thin(name).train()
    for module in model.modules():  # the last BatchNorm of a branch starts at 0, and stops all gradients
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    losses = model(*batch_of(3, 0))
    assert set(losses) == LOSSES | ({"loss_mask"} if name.startswith("mask") else set())
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("size", [(40, SIDE), (SIDE, 40), (100, 100), (300, 500)])
def test_detections_depend_on_no_image_before(size):
    """A new detector has the same detections in an image of any shape later, alone or with others."""
    (image,), _ = batch_of(0, size=size)
    (square,), _ = batch_of(0)
    new, used = settle(thin()), settle(thin())
    used.load_state_dict(new.state_dict())
    with torch.no_grad():
        used([square])
        (first,), (later, _) = new([image]), used([image, square])
    assert len(first["boxes"])
    for key in ("boxes", "scores", "masks"):
        torch.testing.assert_close(first[key], later[key], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("counts", [(0, 0), (1,), (0,)], ids=["none", "one image", "one image of none"])
def test_batches_that_have_little(counts):
    """Each parameter has a gradient even then, maybe zeros: processes that train together wait for it."""
    model = thin().train()
    losses = model(*batch_of(*counts))
    assert all(loss.isfinite() for loss in losses.values())
    if not any(counts):
        assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.isfinite().all()
            assert module.running_var.isfinite().all()


@pytest.mark.parametrize("backbone", ["resnet18_bam", "mobilenet_bam", "senet50"])
def test_other_backbones_train(backbone):
    options = {"alpha": 0.125, "bam_reduction": 4} if "mobile" in backbone else {"widths": [16, 16, 16, 16]}
    small = {"channels": 16, "box_features": 16, "rois": 16, "proposals": 32}
    model = thin(f"maskrcnn_{backbone}", **options, **small).train()
    losses = model(*batch_of(2, 1))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_bfloat16():
    """Losses are float32 and near those without autocast; boxes are not rounded to bfloat16."""
    losses = {}
    for autocast in (False, True):
        model = thin().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses[autocast] = model(*batch_of(3, 2))
        total = sum(losses[autocast].values())
        assert total.dtype == torch.float32
        total.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), key
    for name in ("loss_objectness", "loss_rpn_box_reg"):  # of the same anchors; the regions differ
        torch.testing.assert_close(losses[True][name], losses[False][name], rtol=0.02, atol=1e-3)
    settle(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        boxes = model(batch_of(1)[0])[0]["boxes"]
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_detects_and_learns(dtype):
    """By `.bfloat16()` and `.half()`; boxes are no coarser for it."""
    model = thin().train()
    settle(model)
    model.to(dtype)
    images, targets = batch_of(2, 2)
    images = [image.to(dtype)[:, :-16] for image in images]  # which are scaled to fit
    with torch.no_grad():
        found = model(images)[0]
    assert len(found["boxes"])
    assert {found[key].dtype for key in ("boxes", "scores", "masks")} == {torch.float32}
    assert not torch.equal(found["boxes"], found["boxes"].to(dtype).float())
    sum(model.train()(images, targets).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_a_few_steps_lower_the_loss():
    model = thin().train()
    images, targets = batch_of(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(12):
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        seen.append({name: loss.item() for name, loss in losses.items()})
    for name in ("loss_objectness", "loss_classifier", "loss_mask"):
        assert seen[-1][name] < 0.7 * seen[0][name], name


def test_detections():
    """Inside the image, of known classes, best first, with masks; a batch of two is each image alone."""
    model = settle(thin().double())  # float64: the order of two scores is no matter of rounding
    images = [torch.rand(3, 100, 150, dtype=torch.float64), torch.rand(3, 300, 200, dtype=torch.float64)]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for image, found, single in zip(images, together, alone, strict=True):
        height, width = image.shape[1:]
        boxes, scores, masks = found["boxes"], found["scores"], found["masks"]
        number = len(boxes)
        assert 0 < number <= 100
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width + 1e-3).all()
        assert (boxes[:, 3] <= height + 1e-3).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert ((scores > 0.05) & (scores <= 1)).all()
        assert (scores.diff() <= 0).all()
        assert set(found["labels"].tolist()) <= {1, 2, 3}
        assert masks.shape == (number, 1, height, width)
        assert 0 <= masks.min() <= masks.max() <= 1
        assert set(found) == set(single)
        for key, value in found.items():
            torch.testing.assert_close(value, single[key])


def test_another_size_at_run_time():
    """Finer maps than the position tables were made for, and not square: both are resampled."""
    model = settle(thin())
    made_for = [module.map_size for module in model.modules() if isinstance(module, MHSA2d)]
    assert made_for == [(8, 8), (4, 4)]
    seen = []
    for module in model.modules():
        if isinstance(module, MHSA2d):
            module.register_forward_hook(lambda module, inputs, out: seen.append(tuple(inputs[0].shape[2:])))
    model.transform.size = (192, 256)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 90, 120)])
    assert seen == [(12, 16), (6, 8)]
    assert found["masks"].shape[2:] == (90, 120)


@pytest.mark.parametrize("name", ["maskrcnn_botnet26_thin", "fasterrcnn_botnet26_thin"])
def test_nothing_found(name):
    model = settle(thin(name))
    model.roi_heads.score_thresh = 1.0
    with torch.no_grad():
        found = model([torch.rand(3, 100, 150), torch.rand(3, 50, 40)])
    for detection, size in zip(found, [(100, 150), (50, 40)], strict=True):
        shapes = {"boxes": (0, 4), "labels": (0,), "scores": (0,)}
        shapes |= {"masks": (0, 1, *size)} if name.startswith("mask") else {}
        assert {key: tuple(value.shape) for key, value in detection.items()} == shapes
        assert detection["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("classes", "size", "said"),
    [
        (3, 0, r"image_size=0: wanted \(height, width\)"),
        (3, -5, "image_size=-5: wanted"),
        (3, True, "image_size=True: wanted"),
        (3, "128", "image_size='128': wanted"),
        (3, (128,), r"image_size=.*: wanted"),
        (3, (128, 128.0), r"image_size=.*: wanted"),
        (2.5, 128, "num_classes=2.5: wanted a whole number"),
        ("3", 128, "num_classes='3': wanted a whole number"),
        (1, 128, "num_classes=1: wanted the background"),
    ],
)
def test_what_a_detector_on_any_backbone_cannot_be_made_for_is_refused(classes, size, said):
    body = create_model("botnet26_thin", num_classes=0, image_size=SIDE)
    for make in (mask_rcnn, faster_rcnn):
        with pytest.raises(ValueError, match=said):
            make(body, classes, size)


def test_counts():
    """Of the backbone alone, and of the whole detector with as many regions as there can be."""
    with torch.device("meta"):
        model = thin()
        body = create_model("botnet26_thin", num_classes=0, image_size=SIDE)
    C, proposals, detections = 64, 200, 100
    pyramid = count(model.backbone, SIDE).madds - count(body, SIDE).madds
    widths = (64, 128, 256, 512)
    cells = [(SIDE // stride) ** 2 for stride in (4, 8, 16, 32)]
    assert pyramid == sum(n * (width * C + 9 * C * C) for n, width in zip(cells, widths, strict=True))
    whole = count(model, SIDE, stages=True)
    assert whole.params == sum(parameter.numel() for parameter in model.parameters())
    assert whole.stages["rpn"][1] == sum([*cells, 4]) * (2 * 9 * C * C + 15 * C)
    box = 4 * 49 * 9 * C * C + 49 * C * 256 + 256 * 5 * 4
    mask = 4 * 196 * 9 * C * C + 784 * C * C + 784 * C * 4  # a deconvolution's result has one tap a pixel
    assert whole.stages["roi_heads"][1] == proposals * box + detections * mask
    assert whole.madds - whole.madds_no_classifier == proposals * 256 * 4
    assert [set(found) for found in model.eval()([torch.empty(3, 90, 80, device="meta")])] == [
        {"boxes", "labels", "scores", "masks"}
    ]
