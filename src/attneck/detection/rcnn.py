"""Faster R-CNN and Mask R-CNN on any backbone, as BoTNet describes them (§4.1, A.2, A.3).

Region proposals, matching, sampling, losses and non-maximum suppression are torchvision's, with its defaults.
One differs: 1000 proposals in training too, as in the code base that the paper names (Cloud TPU Detection).
`variant="cloud_tpu"`, which the recipes of its tables have, has more of that code base, which the text does
not mention (`cloud_tpu.py`);
`variant="torchvision"` has torchvision's 2000 in training, and its heads; `variant="c4"`, which BAM's paper
has, no pyramid (`c4.py`).
Letters: B batch, K classes with the background, n objects, H×W of an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import detection

from attneck.checks import sides
from attneck.detection import c4, cloud_tpu
from attneck.detection.fpn import FPN
from attneck.detection.heads import (
    BOX_BINS,
    MASK_BINS,
    Anchors,
    MaskRoIAlign,
    RoIAlign,
    make_heads,
)
from attneck.detection.interface import check_classes, nothing_found
from attneck.detection.transform import STEP, Transform, canvas
from attneck.errors import one_line
from attneck.layers.meta import meta_copy, shapes_alone
from attneck.models import catalog
from attneck.models.detector_options import RCNNOptions
from attneck.models.options import override
from attneck.models.resnet import ResNetOptions

NORM_EPSILON = 1e-4  # A.2


class RCNN(detection.FasterRCNN):
    """torchvision's Faster R-CNN: `model(images, targets)` → losses, `model(images)` → detections.

    Images are [3, H, W] between 0 and 1, of any size (see `Transform`); targets have `boxes` [n, 4] in pixels
    (x1, y1, x2, y2; n may be 0), `labels` [n] from 1 to K - 1 (class 0 is the background) and, where there
    are masks to learn, `masks` [n, H, W] of 0 and 1. Losses are `loss_objectness`, `loss_rpn_box_reg`,
    `loss_classifier`, `loss_box_reg` and `loss_mask`. A detection has `boxes` [m, 4], `labels` [m],
    `scores` [m] and `masks` [m, 1, H, W], the probability of each pixel to be in the object; m may be 0.

    Every weight learns, and BatchNorm uses the statistics of the batch (A.2). With `freeze_norms` those of
    the backbone keep the weights and statistics that were loaded.

    Args:
        backbone: see `FPN`, and for variant c4 `c4.without_pyramid`; its BatchNorms, unless frozen, get the
            momentum of `options`, and in BoTNet's variant the epsilon of A.2.
        num_classes: K, background counted, as in all of torchvision's detectors (COCO: 81).
        image_size: (height, width) in pixels that images are fitted into in evaluation.
        options: everything else.

    Raises:
        ValueError: no class besides the background, a backbone that returns no maps, or `freeze_norms` and a
            backbone without BatchNorm; in the first step, where a frozen BatchNorm has no statistics.
    """

    compiled_part = "backbone"

    def __init__(
        self, backbone: nn.Module, num_classes: int, image_size: tuple[int, int], options: RCNNOptions
    ) -> None:
        check_classes(num_classes)
        if options.masks != isinstance(self, detection.MaskRCNN):
            raise ValueError(f"{type(self).__name__} got masks={options.masks}: use mask_rcnn or faster_rcnn")
        plain = options.variant in ("torchvision", "c4")
        tpu = options.variant == "cloud_tpu"
        make = c4.without_pyramid if options.variant == "c4" else _with_pyramid
        maps, parts = make(backbone, num_classes, options)
        pool = parts.pop("box_roi_pool")
        super().__init__(
            maps,
            rpn_pre_nms_top_n_train=options.candidates,
            rpn_post_nms_top_n_train=options.training_proposals,
            rpn_post_nms_top_n_test=options.proposals,
            box_batch_size_per_image=options.rois,
            **parts,
        )
        self.roi_heads.box_roi_pool = pool  # torchvision's constructor takes RoIAlign alone
        if tpu:  # torchvision's constructor makes the two; these differ in their losses alone
            self.rpn.__class__, self.roi_heads.__class__ = cloud_tpu.Regions, cloud_tpu.Heads
        self.transform = Transform(image_size, max(STEP, maps.reductions[-1]))
        self._freeze_norms = options.freeze_norms
        self._statistics_seen = not options.freeze_norms
        frozen = list(self._frozen().values())
        if options.freeze_norms and not frozen:
            raise ValueError("freeze_norms=True would change nothing: this backbone has no BatchNorm")
        for norm in frozen:
            norm.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module not in frozen:
                module.momentum = options.norm_momentum
                if not plain:
                    module.eps = NORM_EPSILON
        self.train()

    def train(self, mode: bool = True) -> RCNN:
        """As `nn.Module.train`; frozen norms stay in evaluation, so they use their own statistics."""
        super().train(mode)
        for norm in self._frozen().values():
            norm.eval()
        return self

    def _frozen(self) -> dict[str, _BatchNorm]:
        """The frozen BatchNorms by name. Looked up each time: a conversion may have replaced some."""
        backbone: Any = getattr(self.backbone, "network", self.backbone)  # compiled, while it is called
        modules = [*backbone.body.named_modules()]
        if isinstance(self.roi_heads.box_head, c4.LastStage):  # the backbone's, too
            modules += self.roi_heads.box_head.named_modules(prefix="model")
        norms = {name: module for name, module in modules if isinstance(module, _BatchNorm)}
        return norms if self._freeze_norms else {}

    def check_statistics(self) -> None:
        """ValueError for a frozen BatchNorm that nothing was loaded into: it would normalise nothing."""
        for name, norm in self._frozen().items():
            if norm.running_var is None or bool((norm.running_var == 1).all()):
                raise ValueError(
                    f"freeze_norms=True, but the backbone's {name} has no statistics yet: load trained "
                    "weights (load_weights; in a recipe model.weights), or leave freeze_norms out"
                )
        self._statistics_seen = True

    def get_classifier(self) -> nn.Module:
        """The layer that classifies regions, under the name that timm has for it."""
        classifier: nn.Module = self.roi_heads.box_predictor.cls_score
        return classifier

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training, else a detection for each image, as the class describes them."""
        if self.training and not self._statistics_seen:
            self.check_statistics()
        return self._without_values(images) if images[0].is_meta else super().forward(images, targets)

    def _without_values(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """An evaluation on the meta device, which has no scores: with as many regions as there can be."""
        batch = self.transform(list(images))[0].tensors
        maps = self.backbone(batch)
        self.rpn.head(list(maps.values()))
        heads, B, C = self.roi_heads, len(batch), self.backbone.out_channels
        regions = batch.new_empty(B * self.rpn.post_nms_top_n(), C, *heads.box_roi_pool.output_size)
        heads.box_predictor(heads.box_head(regions))
        if heads.has_mask():
            regions = batch.new_empty(B * heads.detections_per_img, C, MASK_BINS, MASK_BINS)
            heads.mask_predictor(heads.mask_head(regions))
        return nothing_found(batch, heads.has_mask())


def _with_pyramid(backbone: nn.Module, num_classes: int, options: RCNNOptions) -> tuple[FPN, dict[str, Any]]:
    """The pyramid, and by the names of torchvision's arguments what sees its maps."""
    tpu = options.variant == "cloud_tpu"
    pyramid = (
        FPN(backbone, options.channels, None, cloud_tpu.NormalisedLevels)
        if tpu
        else FPN(backbone, options.channels, None if options.variant == "torchvision" else nn.BatchNorm2d)
    )
    levels = len(pyramid.reductions)
    names, reductions, samples = pyramid.names, pyramid.reductions[:-1], 2  # regions: of all maps but p6
    parts: dict[str, Any] = {**make_heads(options, levels, num_classes)}
    # Eight strides of the map: 32 pixels on p2 to 512 on p6. They double from level to level also where c5
    # keeps c4's stride, as BoTNet-S1's, so there p5's and p6's are sixteen strides.
    sides = [[8 * pyramid.reductions[0] * 2**level] for level in range(levels)]
    parts["rpn_anchor_generator"] = Anchors(sides, centred=tpu)
    if tpu:
        names, reductions, samples = [*names, "pool"], pyramid.reductions, 1
        cloud_tpu.begin(parts["box_predictor"])
        parts["box_score_thresh"] = 0.0
    parts["box_roi_pool"] = RoIAlign(names, BOX_BINS, reductions, samples)
    if options.masks:
        parts["mask_roi_pool"] = MaskRoIAlign(names, MASK_BINS, reductions, samples)
    return pyramid, parts


class MaskRCNN(RCNN, detection.MaskRCNN):
    """`RCNN` with masks: torchvision's Mask R-CNN, so torchvision's evaluation scores its masks too."""


def faster_rcnn(
    backbone: nn.Module, num_classes: int, image_size: int | tuple[int, int] = 1024, **options: Any
) -> RCNN:
    """Faster R-CNN on any backbone that `RCNN` takes, such as one changed by surgery.

    Args:
        backbone, num_classes: see `RCNN`. Images are normalised by the mean and std of the backbone's
            `pretrained_cfg`, which timm's networks have, else by ImageNet's.
        image_size: side or (height, width) in pixels.
        options: `variant`, `channels`, `rpn_convs`, `box_convs`, `box_features`, `proposals`, `candidates`,
            `rois`, `norm_momentum`, `freeze_norms`; see `RCNNOptions`.

    Raises:
        ValueError: see `RCNN`; an unknown option, or a value that the option does not take; a backbone that
            does not take images of that size, or gives maps of other strides than it says.
    """
    chosen = override(RCNNOptions(masks=False), options, "faster_rcnn")
    return _checked(_rcnn(backbone, num_classes, image_size, chosen))


def mask_rcnn(
    backbone: nn.Module, num_classes: int, image_size: int | tuple[int, int] = 1024, **options: Any
) -> RCNN:
    """Mask R-CNN on any backbone, as `faster_rcnn`; `mask_convs` is an option too."""
    chosen = override(RCNNOptions(), options, "mask_rcnn")
    return _checked(_rcnn(backbone, num_classes, image_size, chosen))


def build_rcnn(options: RCNNOptions, *, num_classes: int, image_size: tuple[int, int]) -> RCNN:
    """A detector of the catalog: the backbone that `options` name, made for the canvas of `image_size`.

    By variant c4 its last stage sees regions, and its attention is made for those.
    """
    assert options.backbone is not None
    backbone: Any = catalog.build_family(options.backbone, 0, canvas(image_size, STEP))
    if options.variant == "c4" and isinstance(options.backbone, ResNetOptions) and options.backbone.attends:
        side = c4.BINS * options.backbone.c4_stride
        backbone.layer4 = catalog.build_family(options.backbone, 0, (side, side)).layer4
    return _rcnn(backbone, num_classes, image_size, options)


def _rcnn(
    backbone: nn.Module, num_classes: int, image_size: int | tuple[int, int], options: RCNNOptions
) -> RCNN:
    size = sides("image_size", image_size)
    detector = (MaskRCNN if options.masks else RCNN)(backbone, num_classes, size, options)
    known = getattr(backbone, "pretrained_cfg", None) or {}
    if all(len(known.get(name) or ()) == 3 for name in ("mean", "std")):
        detector.transform.image_mean, detector.transform.image_std = [*known["mean"]], [*known["std"]]
    return detector


def _checked(detector: RCNN) -> RCNN:
    """It; ValueError where the backbone does not take its images, or gives other maps than it says."""
    pyramid: Any = detector.backbone
    H, W = canvas(detector.transform.size, detector.transform.size_divisible)
    kind = type(getattr(pyramid.body, "model", pyramid.body)).__name__
    if any(module._forward_hooks or module._forward_pre_hooks for module in pyramid.body.modules()):
        return detector  # which may be what gives its maps, as in timm's FeatureHookNet
    try:
        with shapes_alone():
            maps = meta_copy(pyramid).eval()(torch.empty(1, 3, H, W, device="meta"))
    except Exception as error:  # the backbone asserts, or shapes do not fit
        if isinstance(error, NotImplementedError) or "meta" in str(error):  # it looks at values
            return detector
        raise ValueError(
            f"this {kind} does not take the detector's images, {H}×{W} pixels ({one_line(error, 150)}): make "
            "it for images of that size or of any (timm: img_size, strict_img_size=False), or give another "
            "image_size"
        ) from error
    for stride, found in zip(pyramid.reductions, maps.values(), strict=True):
        # Convolutions without padding leave up to three positions out.
        if max(abs(H / stride - found.shape[2]), abs(W / stride - found.shape[3])) > 3:
            raise ValueError(
                f"this {kind} says that a map has stride {stride}, and of {H}×{W} pixels it is of "
                f"{found.shape[2]}×{found.shape[3]}: set its reductions right"
            )
    return detector
