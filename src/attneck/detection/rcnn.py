"""Faster R-CNN and Mask R-CNN on any backbone, as BoTNet trains them on COCO (§4.1, A.2, A.3).

Region proposals, matching, sampling, losses and non-maximum suppression are torchvision's, with its defaults
but for 1000 proposals in training too, as in the code base that the paper names (Cloud TPU Detection). The
pyramid, the heads with their BatchNorm, and how images come in are in the files beside this one.
Letters: B batch, K classes with the background, n objects, H×W of an image.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from attneck.detection.fpn import FPN
from attneck.detection.heads import (
    BOX_CELLS,
    MASK_CELLS,
    Anchors,
    BoxPredictor,
    MaskPredictor,
    MaskRoIAlign,
    RoIAlign,
    RPNHead,
    box_head,
)
from attneck.detection.interface import check_classes, nothing_found
from attneck.detection.transform import STEP, Transform, canvas
from attneck.models import catalog
from attneck.models.detector_options import RCNNOptions
from attneck.models.options import override

NORM_EPSILON = 1e-4  # A.2


class RCNN(FasterRCNN):
    """torchvision's detector: `model(images, targets)` → losses in training, `model(images)` → detections.

    Images are [3, H, W] between 0 and 1, of any size (see `Transform`); targets have `boxes` [n, 4] in pixels
    (x1, y1, x2, y2; n may be 0), `labels` [n] from 1 to K - 1 (class 0 is the background) and, where there
    are masks to learn, `masks` [n, H, W] of 0 and 1. Losses are `loss_objectness`, `loss_rpn_box_reg`,
    `loss_classifier`, `loss_box_reg` and `loss_mask`. A detection has `boxes` [m, 4], `labels` [m],
    `scores` [m] and `masks` [m, 1, H, W], the probabilities that a pixel is the object's; m may be 0.

    Nothing is frozen: every weight learns, those of BatchNorm too, and it uses the batch's statistics (A.2).

    Args:
        backbone: see `FPN`; every BatchNorm in it is given the momentum and epsilon of the others.
        num_classes: K, background counted, as in all of torchvision's detectors (COCO: 81).
        image_size: (height, width) in pixels that images are fitted into in evaluation.
        options: all else.

    Raises:
        ValueError: no class beside the background, or a backbone that makes no maps.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, image_size: tuple[int, int], options: RCNNOptions
    ) -> None:
        check_classes(num_classes)
        pyramid = FPN(backbone, options.channels)
        C, levels = options.channels, len(pyramid.reductions)
        reductions = pyramid.reductions[:-1]  # of the maps that regions are cut out of: not p6
        super().__init__(
            pyramid,
            rpn_anchor_generator=Anchors(pyramid.reductions[0], levels),
            rpn_head=RPNHead(C, 3, options.rpn_convs, levels),
            rpn_post_nms_top_n_train=options.proposals,
            rpn_post_nms_top_n_test=options.proposals,
            box_roi_pool=RoIAlign(pyramid.names, BOX_CELLS, reductions),
            box_head=box_head(C, options.box_convs, options.box_features),
            box_predictor=BoxPredictor(options.box_features, num_classes),
            box_batch_size_per_image=options.rois,
        )
        self.transform = Transform(image_size, max(STEP, pyramid.reductions[-1]))
        if options.masks:
            self.roi_heads.mask_roi_pool = MaskRoIAlign(pyramid.names, MASK_CELLS, reductions)
            self.roi_heads.mask_head = MaskRCNNHeads(
                C, [C] * options.mask_convs, dilation=1, norm_layer=nn.BatchNorm2d
            )
            self.roi_heads.mask_predictor = MaskPredictor(C, num_classes)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.momentum, module.eps = options.norm_momentum, NORM_EPSILON

    def get_classifier(self) -> nn.Module:
        """What says the class of a region, as timm calls the last layer of a network."""
        classifier: nn.Module = self.roi_heads.box_predictor.cls_score
        return classifier

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training, else a detection of each image, as the class says."""
        return self._without_values(images) if images[0].is_meta else super().forward(images, targets)

    def _without_values(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """An evaluation on the meta device, where nothing can be chosen: the most regions there can be."""
        batch = self.transform(list(images))[0].tensors
        maps = self.backbone(batch)
        self.rpn.head(list(maps.values()))
        heads, B, C = self.roi_heads, len(batch), self.backbone.out_channels
        regions = batch.new_empty(B * self.rpn.post_nms_top_n(), C, BOX_CELLS, BOX_CELLS)
        heads.box_predictor(heads.box_head(regions))
        if heads.has_mask():
            regions = batch.new_empty(B * heads.detections_per_img, C, MASK_CELLS, MASK_CELLS)
            heads.mask_predictor(heads.mask_head(regions))
        return nothing_found(batch, heads.has_mask())


def faster_rcnn(
    backbone: nn.Module, num_classes: int, image_size: int | tuple[int, int] = 1024, **options: Any
) -> RCNN:
    """Faster R-CNN on any backbone that `FPN` takes, such as one changed by surgery.

    Args:
        backbone, num_classes: see `RCNN`.
        image_size: side or (height, width) in pixels.
        options: `channels`, `rpn_convs`, `box_convs`, `box_features`, `proposals`, `rois`,
            `norm_momentum`; see `RCNNOptions`.

    Raises:
        ValueError: see `RCNN`; or an option that there is not, or a value that it does not take.
    """
    return _on(backbone, num_classes, image_size, RCNNOptions(masks=False), options, "faster_rcnn")


def mask_rcnn(
    backbone: nn.Module, num_classes: int, image_size: int | tuple[int, int] = 1024, **options: Any
) -> RCNN:
    """Mask R-CNN on any backbone, as `faster_rcnn`; `mask_convs` is an option too."""
    return _on(backbone, num_classes, image_size, RCNNOptions(), options, "mask_rcnn")


def build(options: RCNNOptions, *, num_classes: int, image_size: tuple[int, int]) -> RCNN:
    """A detector of the catalog: the backbone that `options` name, made for the canvas of `image_size`."""
    assert options.backbone is not None
    backbone = catalog.build_family(options.backbone, 0, canvas(image_size, STEP))
    return RCNN(backbone, num_classes, image_size, options)


def _on(
    backbone: nn.Module,
    num_classes: int,
    image_size: int | tuple[int, int],
    row: RCNNOptions,
    options: dict[str, Any],
    name: str,
) -> RCNN:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return RCNN(backbone, num_classes, size, override(row, options, name))
