"""SSD300: the published size, the maps and boxes, torchvision's interface, and torchvision's own trunk."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.vgg import cfgs, make_layers, vgg16

from attneck.detection.ssd import TRUNKS
from attneck.measure import count
from attneck.models.catalog import CATALOG, create_model, find, list_detectors, list_models

# BAM Table 4b prints 26.5, 5.81, 32.0, 32.1, 5.98 and 6.00 M.
PARAMETERS = {
    "ssd300_vgg16": ("26.5", 26_515_936),
    "ssd300_mobilenet": ("5.81", 5_813_536),
    "stairnet_vgg16": ("32.0", 32_006_880),
    "stairnet_vgg16_bam": ("32.1", 32_113_362),
    "stairnet_mobilenet": ("5.98", 5_976_224),
    "stairnet_mobilenet_bam": ("6.00", 6_004_130),
}
MAPS = {"vgg16": (38, 19, 10, 5, 3, 1), "mobilenet": (19, 10, 5, 3, 2, 1)}
BOXES = (6, 6, 6, 6, 4, 4)
# A forward and a backward pass on VGG16 are tens of times those on MobileNet.
ONE_OF_EACH = [
    "ssd300_mobilenet",
    "stairnet_mobilenet_bam",
    pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    pytest.param("stairnet_vgg16_bam", marks=pytest.mark.slow),
]


def trunk_of(name: str) -> str:
    return "vgg16" if "vgg16" in name else "mobilenet"


@pytest.fixture(scope="module", params=PARAMETERS)
def on_meta(request):
    with torch.device("meta"):
        return request.param, create_model(request.param)


def targets_of(*counts: int) -> list[dict[str, torch.Tensor]]:
    """So many boxes for each image, inside 200×200."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in counts:
        corner = 100 * torch.rand(number, 2, generator=generator)
        size = 20 + 80 * torch.rand(number, 2, generator=generator)
        labels = torch.randint(1, 21, (number,), generator=generator)
        made.append({"boxes": torch.cat([corner, corner + size], dim=1), "labels": labels})
    return made


def test_the_six_detectors_stand_beside_the_catalog():
    assert {name for name in list_detectors() if "rcnn_" not in name} == set(PARAMETERS)
    assert list_detectors("stairnet_*_bam") == ["stairnet_mobilenet_bam", "stairnet_vgg16_bam"]
    assert not set(list_models()) & set(list_detectors())
    assert all((CATALOG[name].image_size, CATALOG[name].num_classes) == (300, 21) for name in PARAMETERS)


def test_the_parameters_are_those_of_table_4b(on_meta):
    name, model = on_meta
    printed, exact = PARAMETERS[name]
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params == exact
    assert f"{params / 1e6:.{len(printed.split('.')[1])}f}" == printed


def test_multiply_adds_are_weights_times_the_positions_they_are_used_at(on_meta):
    name, model = on_meta
    found: dict[bool, int] = {True: 0, False: 0}
    classifiers = set(model.get_classifier().modules())

    def conv(module, inputs, out):
        used_at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else out
        found[module in classifiers] += module.weight.numel() * math.prod(used_at.shape[2:])

    def linear(module, inputs, out):
        found[False] += module.weight.numel()

    hooks = [
        module.register_forward_hook(linear if isinstance(module, nn.Linear) else conv)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    maps = model.eval().backbone(torch.empty(1, 3, 300, 300, device="meta"))
    model.head(list(maps.values()))
    for hook in hooks:
        hook.remove()
    counts = count(model, 300)
    assert counts.params == PARAMETERS[name][1]
    assert counts.madds == sum(found.values())
    assert counts.madds - counts.madds_no_classifier == found[True] > 0


def test_six_maps_and_a_box_for_every_logit(on_meta):
    name, model = on_meta
    sizes = MAPS[trunk_of(name)]
    maps = list(model.backbone(torch.empty(2, 3, 300, 300, device="meta")).values())
    assert [tuple(features.shape[2:]) for features in maps] == [(side, side) for side in sizes]
    outputs = model.head(maps)
    boxes = sum(side * side * number for side, number in zip(sizes, BOXES, strict=True))
    if trunk_of(name) == "vgg16":
        assert boxes == 38**2 * 6 + 19**2 * 6 + 10**2 * 6 + 5**2 * 6 + 3**2 * 4 + 4
    assert outputs["cls_logits"].shape == (2, boxes, 21)
    assert outputs["bbox_regression"].shape == (2, boxes, 4)
    assert model.anchor_generator.num_anchors_per_location() == list(BOXES)
    grid = model.anchor_generator._grid_default_boxes([(side, side) for side in sizes], [300, 300])
    assert grid.shape == (boxes, 4)
    assert grid.min() > 0
    # As published, strides are powers of two: the last of 10 cells has its centre at 304 of 300 pixels.
    assert grid[:, :2].max() <= (304.1 / 300 if trunk_of(name) == "vgg16" else 1)
    assert grid[:, 2:].max() <= 1


def test_nothing_is_left_without_a_gradient(on_meta):
    _, model = on_meta
    outputs = model.train().head(list(model.backbone(torch.empty(2, 3, 300, 300, device="meta")).values()))
    sum(output.square().mean() for output in outputs.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_training(name):
    """Losses are finite and every parameter learns, from images of different sizes, one without boxes."""
    torch.manual_seed(0)
    model = create_model(name).train()
    images = [torch.rand(3, 200, 240), torch.rand(3, 320, 210)]
    # A box on each map, that a default box of it fits.
    sides, cells = torch.tensor(model.anchor_generator.scales[:6]), torch.tensor(MAPS[trunk_of(name)])
    centres = (cells // 2 + 0.5) / cells
    boxes = torch.stack([low := centres - sides / 2, low, low + sides, low + sides], dim=1)
    boxes *= torch.tensor([240, 200, 240, 200])
    targets = [{"boxes": boxes, "labels": torch.arange(1, 7)}, *targets_of(0)]
    losses = model(images, targets)
    assert set(losses) == {"bbox_regression", "classification"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # BatchNorm follows these biases, so their gradient is 0 but for rounding. On a map of 1×1 the few
        # hidden channels of BAM may all be silent for two images.
        before_norm = key.endswith(("spatial_att.project.bias", "channel_att.expand.bias"))
        assert parameter.grad.any() or before_norm or "posts.5.bam" in key, key


@pytest.mark.parametrize("name", ["ssd300_mobilenet", "stairnet_mobilenet_bam"])
def test_a_batch_without_any_box_trains(name):
    torch.manual_seed(0)
    losses = create_model(name).train()([torch.rand(3, 200, 200)] * 2, targets_of(0, 0))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_boxes_are_as_fine_in_bfloat16():
    """Default boxes are those of float32, losses are float32, and so is what is found."""
    torch.manual_seed(0)
    model = create_model("ssd300_mobilenet")
    images, targets, given = [torch.rand(3, 200, 200) for _ in range(2)], targets_of(2, 3), []
    model.anchor_generator.register_forward_hook(lambda module, inputs, boxes: given.append(boxes[0]))
    with torch.no_grad():
        model.train()(images, targets)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, targets)
            boxes = model.eval()(images)[0]["boxes"]
    assert all(torch.equal(default, given[0]) for default in given[1:])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = create_model("ssd300_mobilenet").train()
    images, targets = [torch.rand(3, 200, 200) for _ in range(2)], targets_of(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    seen = []
    for _ in range(8):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.9 * seen[0]


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if isinstance(name, str)])
def test_detections(name):
    """Inside the image, of known classes, best first; and a batch of two is each image alone."""
    torch.manual_seed(0)
    # In float64, so that the order of two scores is not a matter of rounding.
    model = create_model(name).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as of a trained network, not of an identity
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    images = [torch.rand(3, 200, 240, dtype=torch.float64), torch.rand(3, 320, 210, dtype=torch.float64)]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for image, found, single in zip(images, together, alone, strict=True):
        height, width = image.shape[1:]
        boxes, scores = found["boxes"], found["scores"]
        assert 0 < len(boxes) <= 200
        assert (boxes[:, :2] >= 0).all()
        # torchvision's way back from 300 pixels is by a factor in float32.
        assert (boxes[:, 2] <= width + 1e-4).all()
        assert (boxes[:, 3] <= height + 1e-4).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert ((scores > 0.01) & (scores <= 1)).all()
        assert (scores.diff() <= 0).all()
        assert set(found["labels"].tolist()) <= set(range(1, 21))
        for key in ("boxes", "labels", "scores"):
            torch.testing.assert_close(found[key], single[key])


@pytest.mark.slow
def test_the_vgg_trunk_is_torchvisions():
    """Given the same weights, the same six maps; and it takes those of a VGG16 by their names."""
    torch.manual_seed(0)
    ours = TRUNKS["vgg16"]()
    assert (ours.scale == 20).all()
    theirs = SSDFeatureExtractorVGG(make_layers(cfgs["D"], batch_norm=False), highres=False)
    weights = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(weights))
    with torch.no_grad():
        image = torch.randn(1, 3, 300, 300)
        maps, wanted = ours(image), theirs(image)
    assert list(maps) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(maps[name], wanted[name])
    # conv4_3: every cell of length 20 where it has one.
    lengths = maps["0"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 20.0))

    with torch.device("meta"):
        published = vgg16(weights=None).state_dict()
        found = TRUNKS["vgg16"]().load_state_dict(published, strict=False)
    assert all(name.startswith("classifier.") for name in found.unexpected_keys)
    assert not any(name.startswith("features.") for name in found.missing_keys)


def test_classes_count_the_background():
    with torch.device("meta"):
        model = create_model("ssd300_mobilenet", num_classes=2)
        assert (
            model.get_classifier()([torch.empty(1, C, 1, 1) for C in (512, 1024, 512, 256, 256, 128)]).shape[
                2
            ]
            == 2
        )


@pytest.mark.parametrize("name", ["ssd300_mobilenet", "stairnet_mobilenet"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 1}, "the background"),
        ({"num_classes": 0}, "the background"),
        ({"image_size": 512}, "300×300"),
        ({"image_size": (300, 200)}, "300×300"),
        ({"dropout": 0.5}, "dropout=0.5 would change nothing"),
        ({"trunk": "vgg"}, "perhaps you meant 'vgg16'"),
        ({"heads": 4}, "has no option 'heads'"),
    ],
)
def test_a_mistake_is_answered(name, arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        create_model(name, **arguments)
    assert "\n" not in str(caught.value)


def test_a_near_miss_is_named():
    with pytest.raises(ValueError, match="perhaps you meant 'ssd300_vgg16'"):
        find("ssd300_vgg")
    with pytest.raises(ValueError, match="has no option 'bam'"):
        find("ssd300_vgg16", {"bam": "stages"})
