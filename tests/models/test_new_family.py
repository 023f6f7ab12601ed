"""A new family is its options, which name its builder, its network and a row: nothing else knows of it.

The package has the options in `models/toy/__init__.py`, free of torch, and the rest in `network.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import timm
import torch
from pydantic import Field
from torch import Tensor, nn

import attneck
from attneck.detection import faster_rcnn
from attneck.layers import BAM
from attneck.models import parts, timm_registry
from attneck.models.catalog import CATALOG, Entry, create_model, find, list_models
from attneck.models.features import Pyramid
from attneck.models.options import BAMOptions, Numbers
from attneck.models.staged import StagedNet


class ToyOptions(BAMOptions):
    """Two stages of 3×3 convs; BAM after the first."""

    builder: ClassVar[str] = f"{__name__}:build_toy"

    widths: Annotated[Numbers, Field(min_length=2, max_length=2)] = (16, 32)
    bam: Literal["none", "stages"] = "none"

    @property
    def last_stride(self) -> int:
        return 4

    @property
    def feature_cfg(self) -> dict[str, Any]:
        return {"out_indices": (0, 1)}


class ToyNet(StagedNet):
    """Stages `layer1` and `layer2`, global average pool, `fc`."""

    def __init__(self, options: ToyOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()
        first, second = options.widths
        self.conv1 = nn.Conv2d(in_chans, first, 3, 2, 1, bias=False)
        self.layer1 = nn.Sequential(nn.BatchNorm2d(first), nn.ReLU())
        self.layer2 = nn.Sequential(
            nn.Conv2d(first, second, 3, 2, 1, bias=False), nn.BatchNorm2d(second), nn.ReLU()
        )
        self.row = ["conv1", "layer1", "layer2"]
        self.feature_info = [
            {"num_chs": first, "reduction": 2, "module": "layer1"},
            {"num_chs": second, "reduction": 4, "module": "layer2"},
        ]
        self.num_features = second
        self.make_head(num_classes, options.global_pool, options.dropout)
        self.initialise()


def build_toy(
    options: ToyOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> ToyNet:
    """A `ToyNet`, with BAM if asked for."""
    model = ToyNet(options, num_classes, in_chans)
    if options.bam == "stages":
        parts.append_bam([model.layer1], options.widths[:1], options)
    return model


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "toy", Entry(ToyOptions(), image_size=32, num_classes=10))
    monkeypatch.setitem(CATALOG, "toy_bam", Entry(ToyOptions(bam="stages"), image_size=32, num_classes=10))


def images(chans: int = 3) -> Tensor:
    return torch.randn(2, chans, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_is_found_and_built_and_its_options_are_checked() -> None:
    assert list_models("toy*") == ["toy", "toy_bam"]
    model = create_model("toy_bam", in_chans=2, num_classes=5, widths=[8, 16], bam_reduction=4)
    assert model(images(2)).shape == (2, 5)
    assert [m.reduction for m in model.modules() if isinstance(m, BAM)] == [4]
    for options, says in (
        ({"width": [8, 8]}, "toy has no option 'width'; perhaps you meant 'widths'"),
        ({"widths": [8]}, "2 entries or more"),
        ({"widths": [8, 0]}, r"widths\[1\]=0: wanted 1 or more"),
        ({"bam": "stage"}, "perhaps you meant 'stages'"),
        ({"bam_dilation": 2}, "would change nothing without a BAM"),
    ):
        with pytest.raises(ValueError, match=says):
            find("toy", options)
    with pytest.raises(ValueError, match=r"^toy_bam: .*reduction from 1 to 16"):
        create_model("toy_bam", bam_reduction=17)


def test_it_gives_features_and_takes_a_detector() -> None:
    maps = Pyramid(create_model("toy_bam"))(images())
    assert [tuple(features.shape[1:]) for features in maps] == [(16, 16, 16), (32, 8, 8)]
    small = {"channels": 8, "box_features": 8, "proposals": 8, "rois": 8}
    detector = faster_rcnn(create_model("toy", num_classes=0), 3, 64, **small).eval()
    assert len(detector([torch.rand(3, 40, 50)])) == 1


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = create_model("toy_bam", widths=[8, 16], bam_reduction=4).eval()
    again = attneck.hub.load(attneck.hub.save(model, tmp_path / "toy"))
    torch.testing.assert_close(again(images()), model(images()), rtol=0, atol=0)


def test_it_is_counted() -> None:
    with torch.device("meta"):
        counts = attneck.measure.count(create_model("toy"), 32)
    assert counts.params == 3 * 16 * 9 + 2 * 16 + 16 * 32 * 9 + 2 * 32 + 33 * 10
    assert counts.madds == 16 * 16 * 3 * 16 * 9 + 8 * 8 * 16 * 32 * 9 + 320


def test_it_is_among_timm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import _registry

    for name, table in [*vars(_registry).items()]:
        if name.startswith("_") and not name.startswith("__") and isinstance(table, (dict, set)):
            monkeypatch.setattr(_registry, name, copy.deepcopy(table))  # other tests count the models
    monkeypatch.setattr(timm_registry, "default_cfgs", {**timm_registry.default_cfgs})
    timm_registry.enter()
    assert timm.create_model("attneck_toy").default_cfg["pool_size"] == (8, 8)
    model: Any = timm.create_model("attneck_toy", features_only=True, in_chans=2, widths=[8, 16])
    assert [features.shape[1] for features in model(images(2))] == [8, 16]
