"""`variant="torchvision"` is torchvision's own detector; `freeze_norms` keeps what was loaded."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from attneck.detection import load_weights
from attneck.detection.c4 import LastStage
from attneck.detection.rcnn import faster_rcnn, mask_rcnn
from attneck.layers import BAM
from attneck.measure import count
from attneck.models.catalog import create_model
from attneck.training.recipe_file import load_recipe

SIDE, K = 128, 4
SMALL = {"channels": 8, "box_features": 8, "proposals": 32, "rois": 16}
BACKBONE = {"depths": [1, 1, 1, 1], "widths": [4, 8, 16, 32]}
Parts = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]


def body(name: str = "resnet50", **options: Any) -> nn.Module:
    """A small backbone whose branches are not silent, and whose BatchNorms have seen images."""
    model = create_model(name, num_classes=0, image_size=SIDE, **BACKBONE, **options)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model


def batch(count: int = 2) -> Parts:
    images = [torch.rand(3, SIDE, SIDE) for _ in range(count)]
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 10:70, 20:60], masks[1, 30:120, 50:110] = 1, 1
    boxes = torch.tensor([[20.0, 10, 60, 70], [50, 30, 110, 120]])
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks} for _ in images]


class Pyramid(nn.Module):
    """torchvision's, on the body of ours."""

    def __init__(self, body: nn.Module, widths: list[int], out_channels: int = 256) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(widths, out_channels, LastLevelMaxPool())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps: dict[str, torch.Tensor] = self.fpn({str(i): one for i, one in enumerate(self.body(x))})
        return maps


@pytest.mark.parametrize("masks", [False, True], ids=["faster", "mask"])
def test_it_is_torchvisions_with_torchvisions_defaults(masks: bool) -> None:
    """Their class takes the weights by name, and has the same losses and detections."""
    torch.manual_seed(0)
    ours = (mask_rcnn if masks else faster_rcnn)(body(), K, SIDE, variant="torchvision")
    pyramid = Pyramid(ours.backbone.body, [16, 32, 64, 128])
    theirs = (detection.MaskRCNN if masks else detection.FasterRCNN)(pyramid, K)
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        assert model.train().rpn.post_nms_top_n() == 2000
        assert model.eval().rpn.post_nms_top_n() == 1000
        assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512
        model.transform = ours.transform  # which is no part of the variant
        model.rpn._post_nms_top_n = {"training": 64, "testing": 64}  # for the time that it takes
        model.roi_heads.detections_per_img = 4
    images, targets = batch(1)
    losses = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        torch.manual_seed(1)  # they sample anchors and regions
        losses[name] = model.train()(images, targets)
    assert len(losses["ours"]) == (5 if masks else 4)
    torch.testing.assert_close(losses["ours"], losses["theirs"])
    with torch.no_grad():
        found, wanted = ours.eval()(images), theirs.eval()(images)
    assert all(len(one["boxes"]) for one in found)
    torch.testing.assert_close(found, wanted)


def test_no_norm_but_the_backbones_and_those_as_they_are() -> None:
    ours = mask_rcnn(body(), K, SIDE, variant="torchvision")
    norms = {name for name, module in ours.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms
    assert all(name.startswith("backbone.body.") for name in norms)
    assert {ours.get_submodule(name).eps for name in norms} == {1e-5}


@pytest.mark.parametrize("name", ["maskrcnn_resnet26_thin", "fasterrcnn_resnet26_thin"])
def test_counts(name: str) -> None:
    """By hand, as `test_rcnn.test_counts` for BoTNet's variant."""
    C, fc, proposals, detections, classes = 64, 256, 200, 100, 11
    with torch.device("meta"):
        model = create_model(name, image_size=SIDE, variant="torchvision")
        backbone = create_model("resnet26_thin", num_classes=0, image_size=SIDE)
    cells = [(SIDE // stride) ** 2 for stride in (4, 8, 16, 32)]
    whole, body_alone = count(model, SIDE, stages=True), count(backbone, SIDE)
    conv = 9 * C * C
    pyramid = sum(n * (width * C + conv) for n, width in zip(cells, (64, 128, 256, 512), strict=True))
    box = 49 * C * fc + fc * fc + fc * classes * 5
    mask = 4 * 196 * conv + 784 * C * C + 784 * C * classes if name.startswith("mask") else 0
    assert whole.stages is not None
    assert whole.stages["backbone"][1] == body_alone.madds + pyramid
    assert whole.stages["rpn"][1] == sum([*cells, 4]) * (conv + 15 * C)
    assert whole.stages["roi_heads"][1] == proposals * box + detections * mask
    assert whole.params == sum(parameter.numel() for parameter in model.parameters())


def test_bfloat16_losses_are_float32() -> None:
    torch.manual_seed(0)
    model = mask_rcnn(body(), K, SIDE, variant="torchvision", **SMALL).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch())
        boxes = model.eval()(batch()[0])[0]["boxes"]
    assert {loss.dtype for loss in losses.values()} == {boxes.dtype} == {torch.float32}
    assert not torch.equal(boxes, boxes.bfloat16().float())


def frozen_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    kind = nn.modules.batchnorm._BatchNorm
    modules = model.get_submodule("backbone.body").named_modules()
    return {name: module for name, module in modules if isinstance(module, kind)}


@pytest.mark.parametrize("variant", ["botnet", "cloud_tpu", "torchvision"])
def test_frozen_norms_stay_as_they_were_loaded(variant: str) -> None:
    """All else learns, BAM too, from a batch of one."""
    torch.manual_seed(0)
    model = faster_rcnn(body("resnet50_bam"), K, SIDE, variant=variant, freeze_norms=True, **SMALL)
    assert any(isinstance(module, BAM) for module in model.modules())
    model.eval().train()
    norms = frozen_norms(model)
    assert {type(norm) for norm in norms.values()} == {nn.BatchNorm1d, nn.BatchNorm2d}
    assert {(norm.eps, norm.momentum) for norm in norms.values()} == {(1e-5, 0.1)}  # nor these are changed
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(*batch(1)).values()).backward()
        optimizer.step()
    after = model.state_dict()
    frozen = {f"backbone.body.{name}.{key}" for name, norm in norms.items() for key in norm.state_dict()}
    assert len(frozen) == 5 * len(norms)
    assert {name for name in before if torch.equal(after[name], before[name])} == frozen


def test_frozen_norms_stay_so_through_conversion_and_in_training() -> None:
    """The map c5 in training is that in evaluation, to the bit; norms that learn would move it."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, SIDE, SIDE)
    for freeze in (True, False):
        model = faster_rcnn(body(), K, SIDE, freeze_norms=freeze, **SMALL)
        with torch.no_grad():
            wanted = model.eval().backbone.body(images)[-1]
            found = model.train().backbone.body(images)[-1]
        assert torch.equal(found, wanted) == freeze
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
        assert {norm.training for norm in frozen_norms(converted).values()} == {not freeze}


def test_a_frozen_norm_without_statistics_is_refused() -> None:
    """As it was made it would let everything through, and timm starts the last one of a branch at zero."""
    source = create_model("resnet50", num_classes=0, **BACKBONE)
    model = faster_rcnn(source, K, SIDE, freeze_norms=True, **SMALL)
    assert len(model.eval()(batch()[0])) == 2  # to look at what it is
    with pytest.raises(
        ValueError, match=r"backbone's model.bn1 has no statistics yet: load trained"
    ) as caught:
        model.train()(*batch())
    assert "\n" not in str(caught.value)
    load_weights(model, body().state_dict())
    assert all(loss.isfinite() for loss in model(*batch()).values())
    # A BAM that the weights do not have.
    source = create_model("resnet50_bam", num_classes=0, **BACKBONE)
    model = faster_rcnn(source, K, SIDE, freeze_norms=True, **SMALL)
    load_weights(model, body().state_dict())
    with pytest.raises(ValueError, match=r"backbone's model.layer1.1.channel_att.norm has no statistics"):
        model.train()(*batch())


def test_nothing_to_freeze_is_refused() -> None:
    class Maps(nn.Module):
        channels, reductions = [4], [32]

    with pytest.raises(ValueError, match="would change nothing: this backbone has no BatchNorm"):
        faster_rcnn(Maps(), K, SIDE, freeze_norms=True, **SMALL)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet101", "fasterrcnn_resnet101_bam"])
def test_bams_recipe_trains_the_detector_that_its_paper_cites(name: str) -> None:
    """coco-bam: Ren et al.'s, without a pyramid, not BoTNet's; all norms are the backbone's, and frozen."""
    options = load_recipe("coco-bam").model.options
    with torch.device("meta"):
        model = create_model(name, **options)  # type: ignore[arg-type]
    assert isinstance(model, detection.FasterRCNN)
    assert not isinstance(model, detection.MaskRCNN)
    assert isinstance(model.roi_heads.box_head, LastStage)
    assert len(model.rpn.head.conv) == 1
    assert model.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert model.rpn._post_nms_top_n == {"training": 2000, "testing": 300}
    norms = [(key, m) for key, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 104 + (6 if name.endswith("_bam") else 0)
    for key, norm in norms:
        assert key.startswith(("backbone.body.", "roi_heads.box_head.layer4.")), key
        assert not norm.training
        assert not norm.weight.requires_grad
