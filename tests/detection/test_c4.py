"""`variant="c4"`: Faster R-CNN without a pyramid, the last stage of a ResNet as the head of each region."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import attneck
from attneck.detection import load_weights
from attneck.detection.c4 import C4, RoIPool
from attneck.detection.rcnn import faster_rcnn, mask_rcnn
from attneck.layers import BAM, MHSA2d
from attneck.measure import count
from attneck.models.catalog import create_model

SIDE, K = 128, 4
THIN: dict[str, Any] = {"depths": [1, 1, 2, 2], "widths": [4, 8, 16, 32]}
SMALL: dict[str, Any] = {"variant": "c4", "channels": 8, "proposals": 20, "rois": 16}


def classifier(name: str = "resnet50_bam", **options: Any) -> Any:
    """Small, with branches that are not silent, and BatchNorms that have seen images."""
    model = create_model(name, num_classes=5, **THIN, **options)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return model


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    boxes = torch.tensor([[20.0, 10, 60, 70], [50, 30, 110, 120]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 3])}
    return [torch.rand(3, SIDE, SIDE), torch.rand(3, 96, SIDE)], [target, target]


def test_a_region_is_pooled_as_the_paper_says() -> None:
    """Fast R-CNN's rule (Girshick 2015, §2.1; SPPnet's windows), written out: the maximum of each window."""
    torch.manual_seed(0)
    c4 = torch.rand(2, 3, 8, 10)
    boxes = [torch.tensor([[0.0, 0, 159, 127], [37, 20, 90, 101]]), torch.tensor([[64.0, 64, 65, 65]])]
    found = RoIPool(16)({"0": c4}, boxes, [])
    assert found.shape == (3, 3, 14, 14)
    regions = [(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]
    for of_region, (image, box) in zip(found, regions, strict=True):
        left, top, right, bottom = (round(float(side) / 16) for side in box)
        for row in range(14):
            for column in range(14):
                window = []
                for first, last, index, most in ((top, bottom, row, 8), (left, right, column, 10)):
                    length = max(last - first + 1, 1)
                    start, end = index * length // 14, -(-(index + 1) * length // 14)
                    window.append(slice(min(max(start + first, 0), most), min(max(end + first, 0), most)))
                inside = c4[image, :, window[0], window[1]].flatten(1)  # beyond the map it is empty
                wanted = inside.amax(1) if inside.shape[1] else torch.zeros(3)
                assert torch.equal(of_region[:, row, column], wanted)
    half = RoIPool(16)({"0": c4.bfloat16()}, boxes, [])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), found, atol=0, rtol=1 / 128)


def test_an_image_is_seen_once_and_each_region_by_the_last_stage() -> None:
    """What is found is what the whole classifier's parts say, put together by torchvision's Faster R-CNN."""
    torch.manual_seed(0)
    whole = classifier()
    ours = faster_rcnn(copy.deepcopy(whole), K, SIDE, **SMALL).eval()
    assert sum(isinstance(module, BAM) for module in ours.backbone.modules()) == 3

    class UpToC4(nn.Module):
        out_channels = 64

        def __init__(self) -> None:
            super().__init__()
            self.body = whole

        def forward(self, x: Tensor) -> Tensor:
            found: list[Tensor] = self.body.forward_intermediates(x, indices=[3], intermediates_only=True)
            return found[0]

    theirs = FasterRCNN(
        UpToC4(),
        rpn_anchor_generator=AnchorGenerator(((64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_head=ours.rpn.head,
        rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=20,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=2000,
        box_head=nn.Sequential(whole.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=ours.roi_heads.box_predictor,
        box_batch_size_per_image=16,
    )
    theirs.roi_heads.box_roi_pool = ours.roi_heads.box_roi_pool
    theirs.transform = ours.transform  # type: ignore[assignment]
    images, targets = batch()
    with torch.no_grad():
        found, wanted = ours(images), theirs.eval()(images)
    assert all(len(one["boxes"]) for one in found)
    torch.testing.assert_close(found, wanted)
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(1)  # they sample anchors and regions
        model.train()
        losses.append(model(images, targets))
    assert all(losses[0].values())
    torch.testing.assert_close(*losses)


def test_its_cost_is_that_of_its_parts() -> None:
    """Multiply-adds by hand: up to c4 once, the convolutions on it, and the last stage for each proposal."""
    with torch.device("meta"):
        model = create_model("fasterrcnn_resnet50", image_size=SIDE, num_classes=K, **SMALL, **THIN)
        whole = create_model("resnet50", num_classes=0, image_size=SIDE, **THIN)
        region = create_model("resnet50", num_classes=0, image_size=224, **THIN)
    found = count(model, SIDE, stages=True).stages
    of_image, of_region = count(whole, SIDE, stages=True).stages, count(region, 224, stages=True).stages
    assert found is not None
    assert of_image is not None
    assert of_region is not None
    layer4 = of_image["layer4"][1]
    assert found["backbone"][1] == sum(madds for _, madds in of_image.values()) - layer4
    assert found["rpn"][1] == 8 * 8 * (9 * 64 * 8 + 8 * 12 * 5)
    assert found["roi_heads"][1] == 20 * (of_region["layer4"][1] + 128 * 5 * K)
    rpn = (9 * 64 + 1) * 8 + (8 + 1) * 12 * 5
    parameters = [sum(p.numel() for p in each.parameters()) for each in (model, whole)]
    assert parameters[0] == parameters[1] + rpn + (128 + 1) * 5 * K


@pytest.mark.parametrize("name", ["resnet50_bam", "botnet50"])
def test_a_classifier_fills_both_parts(name: str) -> None:
    torch.manual_seed(0)
    source = classifier(name)
    model = create_model(f"fasterrcnn_{name}", num_classes=K, image_size=SIDE, **SMALL, **THIN)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = load_weights(model, source.state_dict())
    assert loaded.new == []
    assert loaded.unused == ["fc.weight", "fc.bias"]
    assert loaded.warning is None
    after, given = model.state_dict(), source.state_dict()
    for key, tensor in after.items():
        inner = key.removeprefix("backbone.body.model.").removeprefix("roi_heads.box_head.")
        assert torch.equal(tensor, given.get(inner, before[key])), key
    assert sum(key.startswith("roi_heads.box_head.layer4.") for key in after) == sum(
        key.startswith("layer4.") for key in given
    )
    assert load_weights(model, after).new == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("botnet50", {}),
        ("resnet50_bot_c4_c5", {}),
        ("resnet50_bot_c4", {}),
        ("botnet50", {"output_stride": 8}),
        ("botnet_s1_50", {}),
    ],
)
def test_attention_has_the_tables_of_what_it_sees(name: str, options: dict[str, Any]) -> None:
    """Of the image in c4, of a region in the last stage; so none is resampled."""
    size = (128, 192)
    model = create_model(f"fasterrcnn_{name}", num_classes=K, image_size=size, **SMALL, **THIN, **options)
    seen = []

    def look(layer: Any, given: tuple[Tensor, ...]) -> None:
        seen.append((layer.map_size, (*given[0].shape[2:],)))

    for layer in model.modules():
        if isinstance(layer, MHSA2d):
            layer.register_forward_pre_hook(look)
    model.eval()([torch.rand(3, *size)])
    assert seen
    assert all(made == given for made, given in seen)
    assert model.rpn.anchor_generator.sizes == ((64, 128, 256, 512),)


def test_frozen_norms_are_the_last_stages_too() -> None:
    torch.manual_seed(0)
    model = faster_rcnn(classifier("resnet50"), K, SIDE, freeze_norms=True, **SMALL).train()
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    assert any(name.startswith("roi_heads.") for name in norms)
    assert not any(norm.training or norm.weight.requires_grad for norm in norms.values())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(model(*batch()).values()).backward()
    optimizer.step()
    after = model.state_dict()
    of_norms = {f"{name}.{key}" for name, norm in norms.items() for key in norm.state_dict()}
    assert {name for name in before if torch.equal(before[name], after[name])} == of_norms
    model = faster_rcnn(create_model("resnet50", num_classes=0, **THIN), K, SIDE, freeze_norms=True, **SMALL)
    with pytest.raises(ValueError, match=r"backbone's model.bn1 has no statistics yet"):
        model.train()(*batch())
    body = classifier("resnet50")
    for key in ("running_mean", "running_var"):  # as they were made
        getattr(body.layer4[0].bn1, key).fill_(float(key == "running_var"))
    model = faster_rcnn(body, K, SIDE, freeze_norms=True, **SMALL)
    with pytest.raises(ValueError, match=r"layer4.0.bn1 has no statistics yet"):
        model.train()(*batch())


def test_timms_resnets_and_surgery_before() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18d", num_classes=7)
    attneck.surgery.insert_bam(backbone)
    model = faster_rcnn(backbone, K, SIDE, **SMALL)
    assert isinstance(model.backbone, C4)
    assert sum(isinstance(module, BAM) for module in model.backbone.modules()) == 3
    losses = model.train()(*batch())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mask_rcnn(classifier(), K, SIDE, **SMALL), "variant='c4' has no masks"),
        (lambda: faster_rcnn(timm.create_model("resnetv2_50"), K, SIDE, **SMALL), "got a ResNetV2"),
        (
            lambda: faster_rcnn(timm.create_model("resnet18", features_only=True), K, SIDE, **SMALL),
            "got a FeatureListNet: wanted a whole ResNet",
        ),
        (
            lambda: create_model("fasterrcnn_mobilenet", variant="c4"),
            "got a MobileNet: wanted a whole ResNet",
        ),
        (lambda: create_model("fasterrcnn_resnet50", variant="c4", rpn_convs=1), "rpn_convs=1 would change"),
        (
            lambda: create_model("fasterrcnn_resnet50", variant="c4", box_features=8),
            "box_features=8 would change nothing without another variant",
        ),
    ],
)
def test_what_it_does_not_take(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_thin_backbones_own_options_stand_in_no_ones_way() -> None:
    """Of its narrow heads c4 has none: that is no option that somebody gave."""
    model = create_model("fasterrcnn_resnet26_thin", variant="c4", freeze_norms=True)
    assert model.rpn.head.conv[0][0].out_channels == 64
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 64
