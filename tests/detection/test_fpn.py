"""The pyramid, and every kind of backbone that it takes: the catalog's, timm's, one changed by hand."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

from attneck.detection.fpn import FPN
from attneck.detection.rcnn import faster_rcnn, mask_rcnn
from attneck.layers import MHSA2d
from attneck.models.catalog import create_model

SMALL = {"channels": 16, "box_features": 16, "proposals": 32, "rois": 16}


class Maps(nn.Module):
    """The least that a backbone can be."""

    channels, reductions = [4, 6], [8, 16]

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8, stride=8)
        self.second = nn.Conv2d(4, 6, 2, stride=2)

    def forward(self, x):
        return [first := self.first(x), self.second(first)]


def attended(features_only: bool) -> nn.Module:
    """timm's ResNet-14 with MHSA for the 3×3 convolution of its last block."""
    model = timm.create_model("resnet14t", features_only=features_only)
    block = model.layer4[-1]
    stride = block.conv2.stride[0]
    block.conv2 = MHSA2d(block.conv2.in_channels, 8, stride=stride)
    return model


def test_five_maps_of_one_width():
    with torch.device("meta"):
        pyramid = FPN(create_model("botnet50", num_classes=0, image_size=256), 32)
        maps = pyramid(torch.empty(2, 3, 256, 320))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert pyramid.reductions == [4, 8, 16, 32, 64]
    assert [tuple(x.shape) for x in maps.values()] == [
        (2, 32, 256 // s, 320 // s) for s in pyramid.reductions
    ]


def test_p6_is_every_second_position_of_p5():
    pyramid = FPN(Maps(), 8).eval()
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert list(maps) == ["0", "1", "pool"]
    torch.testing.assert_close(maps["pool"], maps["1"][:, :, ::2, ::2], rtol=0, atol=0)


def test_s1_keeps_two_maps_at_stride_16():
    with torch.device("meta"):
        pyramid = FPN(create_model("botnet_s1_50", num_classes=0))
        maps = pyramid(torch.empty(1, 3, 128, 128))
        model = create_model("maskrcnn_botnet_s1_50")
    assert [128 // x.shape[2] for x in maps.values()] == pyramid.reductions == [4, 8, 16, 16, 32]
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))


def theirs(kind: str) -> nn.Module:
    """timm's networks that give their maps in other ways."""
    if kind == "channels last":
        widths = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 128}
        return timm.create_model("swin_tiny_patch4_window7_224", features_only=True, window_size=4, **widths)
    return timm.create_model("resnet14t", features_only=True, feature_cls=kind)


@pytest.mark.parametrize("kind", ["timm", "features_only", "maps", "hook", "dict", "channels last"])
def test_any_backbone(kind):
    torch.manual_seed(0)
    ours = {"timm": partial(attended, False), "features_only": partial(attended, True), "maps": Maps}
    backbone = ours[kind]() if kind in ours else theirs(kind)
    model = mask_rcnn(backbone, 3, 128, mask_convs=1, **SMALL).train()
    images = [torch.rand(3, 128, 128)]
    masks = torch.zeros(1, 128, 128, dtype=torch.uint8)
    masks[:, 20:90, 30:80] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 80, 90]]), "labels": torch.tensor([2]), "masks": masks}
    losses = model(images, [target])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []
    with torch.no_grad():
        assert {"boxes", "masks"} <= set(model.eval()(images)[0])


def test_what_makes_no_maps_is_refused():
    with pytest.raises(ValueError, match="Linear has no feature_info"):
        faster_rcnn(nn.Linear(1, 1), 2)
    with pytest.raises(ValueError, match="faster_rcnn has no option 'heads'"):
        faster_rcnn(Maps(), 2, heads=4)
    with pytest.raises(ValueError, match="mask_rcnn: channels=0"):
        mask_rcnn(Maps(), 2, channels=0)
    with pytest.raises(ValueError, match="the background"):
        mask_rcnn(Maps(), 1)


def test_a_backbone_that_does_not_take_the_images_is_refused_as_the_detector_is_made():
    fixed = timm.create_model("test_vit", img_size=64, dynamic_img_size=False)
    with pytest.raises(ValueError, match=r"VisionTransformer does not take the detector's images, 128×128"):
        faster_rcnn(fixed, 3, 128, **SMALL)
    any_size = timm.create_model("test_vit", img_size=64, dynamic_img_size=True)
    assert len(faster_rcnn(any_size, 3, 128, **SMALL).eval()([torch.rand(3, 90, 70)])) == 1


def test_a_backbone_that_looks_at_values_is_let_through():
    class Looks(Maps):
        def forward(self, x):
            assert x.sum().item() == x.sum().item()
            return super().forward(x)

    assert len(faster_rcnn(Looks(), 3, 128, **SMALL).eval()([torch.rand(3, 90, 70)])) == 1


def test_a_backbone_whose_maps_have_other_strides_than_it_says_is_refused():
    wrong = Maps()
    assert mask_rcnn(wrong, 3, 128, **SMALL)
    wrong.reductions = [8, 32]
    with pytest.raises(
        ValueError, match=r"this Maps says that a map has stride 32, .* is of 8×8: set its red"
    ):
        mask_rcnn(wrong, 3, 128, **SMALL)
