"""What an exported file says of its images: how they are cut, their colours, and their sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import attneck
from attneck import export
from attneck.export.metadata import metadata
from attneck.tasks import classification
from attneck.tasks.of_timm import of_timm
from attneck.training.recipe import Recipe


def test_a_grey_network_is_given_no_colours() -> None:
    for in_chans, begins in ((1, "the shorter side"), (3, "RGB, the shorter side")):
        model = attneck.create_model("cifar_resnet20", in_chans=in_chans)
        assert metadata(model, (32, 32), False, 100)["preprocessing"].startswith(begins)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_file_says_how_timm_cuts_an_image_for_it(mode: str) -> None:
    model = timm.create_model("resnet18", num_classes=5)
    model.pretrained_cfg |= {"crop_mode": mode, "crop_pct": 1.0}
    about = metadata(model, (64, 64), False, 5)
    begins = {"center": "RGB, the shorter", "squash": "RGB, both sides", "border": "RGB, the longer side"}
    assert about["preprocessing"].startswith(begins[mode])
    assert json.loads(about["crop_mode"]) == mode
    resized = timm.data.create_transform(**timm.data.resolve_data_config(model=model)).transforms[0]
    shape = resized(torch.zeros(3, 100, 200)).shape[1:]
    assert tuple(shape) == {"center": (224, 448), "squash": (224, 224), "border": (112, 224)}[mode]


def test_a_run_cuts_the_centre_whatever_timm_s_weights_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squashing(*given: Any, **options: Any) -> Any:
        network, left = of_timm(*given, **options)
        network.pretrained_cfg = dict(network.pretrained_cfg) | {"crop_mode": "squash"}
        return network, left

    monkeypatch.setattr(classification, "of_timm", squashing)
    recipe = Recipe.model_validate({"model": {"name": "timm/test_resnet"}})
    facts = {"classes": ["a", "b"], "image_size": 32, "mean": [0] * 3, "std": [1] * 3, "crop_pct": 1.0}
    model: Any = classification.Classification.build(recipe, facts)
    attneck.hub.save(model, tmp_path / "saved")
    for one in (model, attneck.load(tmp_path / "saved")):
        assert one.pretrained_cfg["crop_mode"] == "center"


def pooled() -> nn.Module:
    """Means of 3×3 parts of a map, and so of windows whose length is the image's."""
    return nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.AdaptiveAvgPool2d(3), nn.Flatten())


def test_a_pool_whose_windows_are_the_image_s_is_in_no_onnx_of_any_size(tmp_path: Path) -> None:
    """PyTorch's exporter writes the windows of one size, and other sizes give other results."""
    with pytest.raises(ValueError, match=r"ONNX has no adaptive_avg_pool2d to 3 × 3 of a map of any size: "):
        export.export(pooled(), tmp_path / "net.onnx", image_size=96, dynamic=["size"])
    assert not list(tmp_path.iterdir())
    export.export(pooled(), tmp_path / "net.onnx", image_size=96, dynamic=["batch"])


def test_the_least_size_that_a_file_says_is_one_that_it_takes(tmp_path: Path) -> None:
    """A program's bounds are 16, and it has a condition beside them."""
    model = pooled()
    done = export.export(model, tmp_path / "net.pt2", image_size=96, dynamic=["size"])
    program = torch.export.load(done.file).module()
    assert done.smallest is not None
    for sides in (done.smallest, (done.smallest[0], 70), (75, done.smallest[1])):
        x = torch.randn(1, 3, *sides)
        torch.testing.assert_close(program(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.randn(1, 3, 16, 16))
