"""What BoTNet's detectors have otherwise than torchvision's by their code base, Cloud TPU Detection (A.2).

Its pyramid (architecture/fpn.py), its anchors (dataloader/anchor.py), its losses (losses.py, with the numbers
of configs/maskrcnn_config.py), the first weights of what predicts boxes (architecture/heads.py), and how it
cuts out regions (ops/spatial_transform_ops.py): of p6 too, from 896 pixels on, by one point in the middle of
each bin. Of all that the paper's text says nothing. As torchvision's stays that a region narrower than one
position of its map counts as one position.
Letters: B batch, C channels of the pyramid, N anchors of an image, R regions of a batch, K classes with the
background.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

REGION_DELTA, BOX_DELTA = 1 / 9, 1.0
"""Where Huber's loss becomes linear: of proposals, and of the boxes of regions."""


class NormalisedLevels(ExtraFPNBlock):
    """p6, a strided 3×3 convolution of p5, and a BatchNorm after each map's last convolution.

    Args:
        channels: C.
        levels: the number of maps that there are before.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.p6 = Conv2dSame(channels, channels, 3, stride=2)
        nn.init.kaiming_uniform_(self.p6.weight, a=1)  # as torchvision's pyramid
        assert self.p6.bias is not None
        nn.init.zeros_(self.p6.bias)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels + 1))

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Maps [B, C, H, W], finest first → those and one of half the size more, and their names."""
        maps = [*results, self.p6(results[-1])]
        return [norm(one) for norm, one in zip(self.norms, maps, strict=True)], [*names, "pool"]


def begin(predictor: nn.Module) -> None:
    """The first weights of a `BoxPredictor`: of classes N(0, 0.01²), of offsets N(0, 0.001²), no biases."""
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


class Regions(RegionProposalNetwork):
    """torchvision's, with its own losses: of boxes all anchors that hold an object count, sampled or not."""

    _of_levels: list[int]
    """Anchors of an image on each map."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's; how many anchors a level has is kept for the losses."""
        self._of_levels = num_anchors_per_level  # `compute_loss` comes next, and is not told
        kept: tuple[list[Tensor], list[Tensor]] = super().filter_proposals(
            proposals, objectness, image_shapes, num_anchors_per_level
        )
        return kept

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Of scores the sum, by how many anchors should be sampled; of boxes the means of each map, added.

        objectness [BN, 1], offsets [BN, 4], and of each image labels [N] (1, 0, -1) and offsets [N, 4].
        """
        B, label, wanted = len(labels), torch.stack(labels), torch.stack(regression_targets)
        sampled = torch.stack([torch.stack(both) for both in zip(*self.fg_bg_sampler(labels), strict=True)])
        chosen = sampled.bool().any(dim=1)  # [B, N]
        logits, found = objectness.view(B, -1), pred_bbox_deltas.view(B, -1, 4)
        score = F.binary_cross_entropy_with_logits(logits[chosen], label[chosen], reduction="sum")
        there = label >= 1
        maps = (part.split(self._of_levels, dim=1) for part in (found, wanted, there))
        boxes = [
            mean_huber(here[which], true[which], REGION_DELTA)
            for here, true, which in zip(*maps, strict=True)
        ]
        return score / (B * self.fg_bg_sampler.batch_size_per_image), torch.stack(boxes).sum()


class Heads(RoIHeads):
    """torchvision's, with the loss of boxes as the mean over the regions that hold an object."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's."""
        predicted: list[tuple[Tensor, Tensor]] = []
        hook = self.box_predictor.register_forward_hook(lambda module, args, result: predicted.append(result))
        try:
            found, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        if self.training:
            labels, wanted = (torch.cat(part) for part in self._sampled)
            del self._sampled
            losses["loss_box_reg"] = box_loss(predicted[0][1], labels, wanted)
        return found, losses

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        """As torchvision's; the labels and offsets of what was sampled are kept for the loss of boxes."""
        chosen = super().select_training_samples(proposals, targets)
        self._sampled = chosen[2], chosen[3]  # what `forward` takes the loss of
        return chosen


def box_loss(offsets: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """offsets [R, 4K], labels [R] (0: no object), wanted offsets [R, 4] → the mean over those of objects."""
    there = labels > 0
    of_class = offsets.unflatten(1, (-1, 4))[there, labels[there]]
    return mean_huber(of_class, wanted[there], BOX_DELTA)


def mean_huber(found: Tensor, wanted: Tensor, delta: float) -> Tensor:
    """Over all numbers of both, [n, 4]; 0 of none."""
    return F.huber_loss(found, wanted, reduction="sum", delta=delta) / max(1, found.numel())
