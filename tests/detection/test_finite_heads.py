"""A detector whose numbers overflow finds nothing, by torchvision's rules: that is said, not scored."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn, ssdlite320_mobilenet_v3_large

import attneck
from attneck import cli
from attneck.commands.given_model import viewer
from attneck.detection.finite import all_finite, finite_heads
from attneck.errors import NotFinite
from attneck.serve.gallery import Gallery, Refused
from attneck.serve.network import Network
from attneck.tasks.detection import Detection

FACTS = {"classes": [f"c{i}" for i in range(10)], "category_ids": list(range(1, 11))}
NAMES = ["maskrcnn_botnet26_thin", "fasterrcnn_botnet26_thin", "ssd300_mobilenet", "stairnet_mobilenet_bam"]


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    size = {} if name.startswith(("ssd", "stairnet")) else {"image_size": 96}
    return attneck.create_model(name, num_classes=11, **size).eval()


def layers_that_answer(model: nn.Module) -> list[str]:
    """The last convolutions or products: of the regions, of the boxes, or of the only head."""
    parts = ("rpn.head", "roi_heads.box_predictor", "head.")
    return [
        key
        for key, module in model.named_modules()
        if key.startswith(parts) and isinstance(module, nn.Conv2d | nn.Linear)
    ]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_every_layer_of_a_head_that_overflows_is_seen(name: str) -> None:
    model: Any = detector(name)
    image = Image.effect_noise((80, 64), 90)
    assert isinstance(Detection.predict(model, image, FACTS), list)
    keys = layers_that_answer(model)
    assert keys
    for key in keys:
        weight = model.get_submodule(key).weight
        before = weight.clone()
        weight.fill_(torch.nan)
        with pytest.raises(NotFinite, match="scores or boxes that are not finite: its weights are broken"):
            Detection.predict(model, image, FACTS)
        weight.copy_(before)
    assert isinstance(Detection.predict(model, image, FACTS), list)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_is_not_held_against_the_next() -> None:
    seen = [torch.tensor(True), torch.tensor(False)]
    assert not all_finite(seen)
    assert all_finite(seen)


def test_a_wrapper_hides_no_head() -> None:
    model = nn.Sequential(OrderedDict({"head": nn.Linear(2, 2)}))
    with finite_heads(nn.DataParallel(model)) as seen:
        model(torch.full((1, 2), torch.inf))
    assert not all_finite(seen)


@torch.inference_mode()
def test_torchvision_s_own_detectors_too() -> None:
    for make in (ssdlite320_mobilenet_v3_large, retinanet_resnet50_fpn):
        model = make(weights=None, weights_backbone=None, num_classes=11).eval()
        next(iter(model.head.parameters())).fill_(torch.inf)
        with pytest.raises(NotFinite):
            Detection.predict(model, Image.effect_noise((80, 64), 90), FACTS)


@pytest.mark.parametrize("name", ["maskrcnn_botnet26_thin", "stairnet_mobilenet_bam"])
def test_no_score_rests_on_what_overflows(name: str) -> None:
    model: Any = detector(name)
    with torch.no_grad():
        next(parameter for parameter in model.backbone.parameters() if parameter.ndim == 4).fill_(torch.inf)
    with pytest.raises(NotFinite, match="6 of 6 images"):
        attneck.evaluate(model, data="shapes", size=6)


def test_what_looks_at_a_photo_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`attneck look` and its page, of a detector and of a classifier."""
    found: Any = detector("maskrcnn_botnet26_thin")
    found.pretrained_cfg = {"label_names": ("background", *FACTS["classes"])}
    named = attneck.create_model("cifar_resnet20_bam", num_classes=3, image_size=32).eval()
    named.pretrained_cfg = {"label_names": ("a", "b", "c"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with torch.no_grad():
        for weight in found.rpn.head.parameters():
            weight.fill_(3e38)
        named.fc.weight.fill_(3e38)
    Image.effect_noise((96, 96), 90).save(photo := tmp_path / "photo.png")
    for model, said in ((found, "scores or boxes"), (named, "logits")):
        file = tmp_path / f"{said}.safetensors"
        attneck.hub.save(model, file)
        for way in ("--save", "--html"):
            out = tmp_path / ("out.png" if way == "--save" else "out.html")
            assert cli.main(["look", str(file), str(photo), way, str(out)]) == 2
            assert f"an image has {said} that are not finite" in capsys.readouterr().err
            assert not out.exists()
        gallery = Gallery([Network(viewer(str(file), None), "net")])
        key = gallery.add(photo.read_bytes())["image"]
        with pytest.raises(Refused, match=f"net: an image has {said} that are not finite") as refused:
            gallery.look(key, 0)
        assert refused.value.status == 422
        gallery.close()
