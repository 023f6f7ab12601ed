"""A backbone from other weights: what fits is taken, what attention replaced is new, and both are said."""

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
    assert str(report).startswith(f"{len(report.taken)} tensors taken; new: layer4.0.conv2.")
    assert str(report).endswith("fc.weight, fc.bias")


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
    report = load_weights(model, source)
    assert report.new == ["layer1.0.conv1.weight"]
    assert "layer1.0.conv1.weight" in report.unused


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
        ("ssd300_vgg16", lambda: torchvision.models.vgg16(), "backbone."),
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
    # What only a detector has is new: VGG16's scale and conv6 on, and all extra layers beside a MobileNet.
    assert bool(report.new) == (name == "ssd300_vgg16")
