"""A backbone from other weights: what fits is taken, what attention replaced is new; both are reported."""

import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from attneck.detection.fpn import FPN
from attneck.detection.rcnn import mask_rcnn
from attneck.detection.weights import load_weights
from attneck.models.catalog import create_model
from attneck.models.weights import StaysRandomWarning

THIN = {"depths": [1, 1, 1, 2], "widths": [4, 4, 4, 8]}
SMALL = {"channels": 8, "box_features": 8}
REPLACED = [f"layer4.{block}.conv2.{name}" for block in (0, 1) for name in ("rel_h", "rel_w", "qkv.weight")]


def resnet(name: str = "resnet50", **options) -> torch.nn.Module:
    return create_model(name, num_classes=5, **THIN, **options)


def detector(name: str = "maskrcnn_botnet50", size: int = 128) -> torch.nn.Module:
    return create_model(name, num_classes=3, image_size=size, **THIN, **SMALL)


def test_all_but_what_attention_replaced():
    torch.manual_seed(0)
    source, model = resnet(), detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, source.state_dict())
    assert sorted(report.new) == sorted(REPLACED)
    assert report.unused == ["layer4.0.conv2.weight", "layer4.1.conv2.weight", "fc.weight", "fc.bias"]
    after, weights = model.state_dict(), source.state_dict()
    prefix = "backbone.body.model."
    for name, tensor in after.items():
        inner = name.removeprefix(prefix)
        wanted = weights[inner] if name.startswith(prefix) and inner in report.taken else before[name]
        assert torch.equal(tensor, wanted), name
    assert len(report.taken) == len(weights) - 4
    assert str(report) == (
        f"{len(report.taken)} tensors taken; 6 new (layer4.0.conv2 (MHSA2d): 3, layer4.1.conv2 (MHSA2d): 3); "
        "4 not used (layer4.0.conv2, layer4.1.conv2, fc)"
    )
    assert report.warning is None


def test_a_classifier_that_is_called_backbone():
    given = {f"backbone.{name}": tensor for name, tensor in resnet().state_dict().items()}
    assert sorted(load_weights(detector(), given).new) == sorted(REPLACED)


def test_position_tables_follow_the_map():
    """From a classifier at 64 pixels to a detector at 128: made longer, not left out."""
    source, model = resnet("botnet50", image_size=64), detector()
    report = load_weights(model, source.state_dict())
    assert report.new == []
    assert report.unused == ["fc.weight", "fc.bias"]
    mhsa = model.backbone.body.model.layer4[0].conv2
    assert mhsa.rel_h.shape == (15, 2)
    assert source.layer4[0].conv2.rel_h.shape == (7, 2)
    torch.testing.assert_close(mhsa.rel_h[::14], source.layer4[0].conv2.rel_h[::6])


def test_a_detector_for_other_classes_takes_all_but_its_last_layers():
    torch.manual_seed(0)
    source, model = (
        detector(),
        create_model("maskrcnn_botnet50", num_classes=9, image_size=192, **THIN, **SMALL),
    )
    report = load_weights(model, source.state_dict())
    last = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    assert sorted(report.new) == sorted(name for name in model.state_dict() if name.startswith(last))
    assert report.new == report.unused
    assert report.warning is None
    torch.testing.assert_close(model.rpn.head.convs[0].weight, source.rpn.head.convs[0].weight)
    mhsa = model.backbone.body.model.layer4[0].conv2  # of 12 × 12 now
    assert mhsa.rel_h.shape == (23, 2)


def test_timm_s_names_are_ours():
    with torch.device("meta"):
        weights = timm.create_model("resnet50").state_dict()
        body = FPN(create_model("botnet50", num_classes=0)).body.model.state_dict()
        plain = FPN(create_model("resnet50", num_classes=0)).body.model.state_dict()
    assert {name: tensor.shape for name, tensor in plain.items()} == {
        name: tensor.shape for name, tensor in weights.items() if not name.startswith("fc.")
    }
    assert body.keys() - weights.keys() == {
        f"layer4.{block}.conv2.{name}" for block in range(3) for name in ("rel_h", "rel_w", "qkv.weight")
    }


@pytest.mark.parametrize("kind", ["safetensors", "pt", "run"])
def test_from_a_file(kind, tmp_path):
    torch.manual_seed(0)
    source, model = resnet(), detector("maskrcnn_resnet50")
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"model": source.state_dict(), "step": 3} if kind == "run" else source.state_dict(), path)
    report = load_weights(model, path if kind == "pt" else str(path))
    assert report.new == []
    torch.testing.assert_close(
        model.backbone.body.model.layer4[1].conv3.weight, source.layer4[1].conv3.weight
    )


def test_a_shape_that_does_not_fit_is_told():
    source, model = resnet().state_dict(), detector("maskrcnn_resnet50")
    source["layer1.0.conv1.weight"] = torch.zeros(7, 7, 1, 1)
    with pytest.warns(StaysRandomWarning, match=r"more stays random .* in layer1\.0\.conv1: are"):
        report = load_weights(model, source)
    assert report.new == ["layer1.0.conv1.weight"]
    assert "layer1.0.conv1.weight" in report.unused
    assert str(report).endswith("another shape: layer1.0.conv1.weight [7, 7, 1, 1], wanted [4, 64, 1, 1]")


def test_a_backbone_of_one_s_own():
    body = timm.create_model("resnet14t", features_only=True)
    weights = {name: tensor + 1 for name, tensor in body.state_dict().items()}
    model = mask_rcnn(body, 3, 64, **SMALL)
    assert load_weights(model, weights).new == []
    assert torch.equal(model.backbone.body.layer4[0].conv1.weight, weights["layer4.0.conv1.weight"])


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_bad_files(tmp_path, capsys):
    model = detector("maskrcnn_resnet50")
    garbage, harmful, other = (tmp_path / name for name in ("a.safetensors", "b.pt", "c.pt"))
    garbage.write_bytes(b"no weights")
    harmful.write_bytes(pickle.dumps(Harmful(), protocol=2))
    torch.save([1, 2], other)
    for path, words in (
        (garbage, "cannot be read"),
        (harmful, "nothing that would run code"),
        (other, "holds no state dict"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            load_weights(model, path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError):
        load_weights(model, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"none of the 1 tensors given \(weight, …\) fits"):
        load_weights(model, {"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "classifier", "first"),
    [
        ("stairnet_mobilenet", lambda: create_model("mobilenet"), "backbone.trunk.pyramid.model."),
        ("ssd300_mobilenet", lambda: create_model("mobilenet"), "backbone.pyramid.model."),
    ],
)
def test_ssd_and_stairnet_begin_with_a_classifier_too(name, classifier, first):
    model, source = create_model(name), classifier()
    report = load_weights(model, source.state_dict())
    after = model.state_dict()
    convolutions = [key for key, tensor in source.state_dict().items() if tensor.dim() == 4]
    assert convolutions
    assert set(convolutions) <= set(report.taken)
    assert all(torch.equal(after[first + key], source.state_dict()[key]) for key in report.taken)
    # What only a detector has: all extra layers beside a MobileNet.
    assert report.new == []
    assert "subsampled" not in str(report)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, torch.Tensor]:
    """torchvision's VGG16: its convolutions, and an fc6 and fc7 whose entries say where they are."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in torchvision.models.vgg16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if not name.startswith("classifier.") or len(shape) == 1
    }
    outputs = torch.arange(4096.0)[:, None]
    weights["classifier.0.weight"] = outputs + torch.arange(512.0 * 7 * 7) / 25088  # output, then position
    weights["classifier.3.weight"] = outputs + torch.arange(4096.0) / 4096
    weights["classifier.6.weight"] = torch.zeros(1000, 4096)
    assert {name: tensor.shape for name, tensor in weights.items()} == shapes
    return weights


def as_timm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in timm.create_model("vgg16").state_dict().items()}
    renamed = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        name = f"{names.get(layer, layer)}.{kind}"
        renamed[name] = tensor.reshape(shapes[name])
    assert renamed.keys() == shapes.keys()
    return renamed


@pytest.mark.parametrize(("name", "names"), [("ssd300_vgg16", "torchvision"), ("stairnet_vgg16", "timm")])
def test_conv6_and_conv7_are_fc6_and_fc7_subsampled(name, names, vgg16):
    """Liu et al. 2016: every third position and every fourth output of fc6; the same outputs of fc7."""
    torch.manual_seed(0)
    model = create_model(name)
    report = load_weights(model, {"model": vgg16 if names == "torchvision" else as_timm(vgg16)})
    trunk = model.backbone.trunk if name.startswith("stair") else model.backbone
    for at, layer in enumerate(trunk.features):
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.equal(layer.weight, vgg16[f"features.{at}.weight"])
    fc6, fc7 = vgg16["classifier.0.weight"], vgg16["classifier.3.weight"]
    assert trunk.conv6.weight.shape == (1024, 512, 3, 3)
    assert trunk.conv7.weight.shape == (1024, 1024, 1, 1)
    # torchvision flattens [512, 7, 7], channels outermost.
    columns = [49 * c + 7 * y + x for c in range(512) for y in (0, 3, 6) for x in (0, 3, 6)]
    rows = list(range(0, 4096, 4))
    assert torch.equal(trunk.conv6.weight.flatten(1), fc6[rows][:, columns])
    assert torch.equal(trunk.conv7.weight[:, :, 0, 0], fc7[rows][:, rows])
    assert torch.equal(trunk.conv6.bias, vgg16["classifier.0.bias"][rows])
    assert torch.equal(trunk.conv7.bias, vgg16["classifier.3.bias"][rows])

    last = "classifier.6" if names == "torchvision" else "head.fc"
    assert {"conv6.weight", "conv6.bias", "conv7.weight", "conv7.bias"} <= set(report.taken)
    assert {name.split(".")[0] for name in report.new} == {"scale", "extras"}
    assert set(report.unused) == {f"{last}.weight", f"{last}.bias"}
    assert str(report).startswith("30 tensors taken of its model; 17 new (scale: 1, extras.0.0: 2, ")
    assert report.warning is None
    assert str(report).endswith("conv6 and conv7 are fc6 and fc7, subsampled")


def test_the_dilated_conv6_sees_what_fc6_sees(vgg16):
    """A map with values at every third position, and the same values six apart: the same sums."""
    torch.manual_seed(0)
    fc6 = torch.zeros(4096, 25088)
    fc6[::4] = torch.randn(1024, 25088)  # the others are not looked at
    weights = vgg16 | {"classifier.0.weight": fc6}
    conv6 = load_into_trunk(weights).conv6
    pooled = torch.zeros(1, 512, 7, 7)
    pooled[:, :, ::3, ::3] = torch.randn(1, 512, 3, 3)
    wanted = torch.nn.functional.linear(
        pooled.flatten(1), weights["classifier.0.weight"], weights["classifier.0.bias"]
    )[0, ::4]
    wide = torch.zeros(1, 512, 13, 13)
    wide[:, :, ::6, ::6] = pooled[:, :, ::3, ::3]
    with torch.no_grad():
        torch.testing.assert_close(conv6(wide)[0, :, 6, 6], wanted, rtol=1e-4, atol=1e-3)


def load_into_trunk(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = create_model("ssd300_vgg16")
    load_weights(model, weights)
    return model.backbone


OTHERS = {
    "no classifier": lambda weights: {k: v for k, v in weights.items() if k.startswith("features.")},
    "no fc7": lambda weights: {k: v for k, v in weights.items() if not k.startswith("classifier.3.")},
    "another fc6": lambda weights: weights | {"classifier.0.weight": torch.zeros(4096, 512)},
    "another fc7": lambda weights: weights | {"classifier.3.weight": torch.zeros(10, 4096)},
    # As of VGG19: more convolutions, of which some lie elsewhere.
    "another VGG": lambda weights: {k: v for k, v in weights.items() if k != "features.17.weight"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_without_fitting_fc6_and_fc7_conv6_and_conv7_are_new(kind, vgg16):
    torch.manual_seed(0)
    model = create_model("ssd300_vgg16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(StaysRandomWarning, match=r"conv6, conv7"):
        report = load_weights(model, OTHERS[kind](vgg16))
    new = {"conv6.weight", "conv6.bias", "conv7.weight", "conv7.bias"}
    assert new <= set(report.new)
    assert "subsampled" not in str(report)
    assert all(
        torch.equal(model.state_dict()[f"backbone.{name}"], before[f"backbone.{name}"]) for name in new
    )


def test_a_detector_of_torchvision_s_fills_the_backbone_too():
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    theirs = FasterRCNN(body, num_classes=3).eval()
    model = create_model("fasterrcnn_resnet18", num_classes=3, image_size=128, variant="torchvision").eval()
    report = load_weights(model, theirs.state_dict())
    assert report.new == report.unused == []
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for ours, wanted in zip(model.backbone(x).values(), theirs.backbone(x).values(), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
