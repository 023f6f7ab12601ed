"""Start a detector from other weights: a classifier's for its backbone, or another detector's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attneck.detection.c4 import C4
from attneck.detection.ssd import VGG16Trunk
from attneck.models.features import Pyramid
from attneck.models.renamed import without_first_part
from attneck.models.weights import Loaded, load_matching, read_weights


def load_weights(detector: Any, weights: Mapping[str, Any] | str | Path) -> Loaded:
    """`load_matching` into the backbone of `detector`, or into all of it.

    Args:
        detector: an R-CNN, SSD300 or StairNet.
        weights: as `load_matching` takes them, and with its errors. Those of a classifier, by its own names,
            fill the backbone alone (BoTNet §4.1, footnote 6); what attention replaced stays random. A VGG16's
            fc6 and fc7 start conv6 and conv7 (see `subsample_fc`). Those of a detector fill pyramid and heads
            too, except for the last layers if the number of classes differs.
    """
    own = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    given = without_first_part(read_weights(weights), own)
    if not any(name.startswith(INNER) for name in given):  # torchvision's detectors have no such part
        given = given.named({_in_pyramid(name, own): tensor for name, tensor in given.items()})
    if any(name.startswith("backbone.") and name in own for name in given):
        return load_matching(detector, given, new=LAST)
    backbone = _backbone(detector)
    if not isinstance(backbone, VGG16Trunk):
        return load_matching(backbone, given)
    subsampled = subsample_fc(given)
    if subsampled is None or not _has_all(backbone, given):
        return load_matching(backbone, given, new=EXTRA)
    return LoadedVGG(**vars(load_matching(backbone, given.named(subsampled), new=EXTRA)))


INNER = "backbone.body.model."
"""Where a detector here has its backbone."""
LAST = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits", "head.classification_head")
"""Layers that the number of classes shapes."""
EXTRA = ("scale", "extras")
"""Of an SSD's trunk, that VGG16 does not have."""


@dataclass(frozen=True)
class LoadedVGG(Loaded):
    """A `Loaded` in whose `taken` conv6 and conv7 are made from other tensors."""

    def __str__(self) -> str:
        return f"{super().__str__()}; conv6 and conv7 are fc6 and fc7, subsampled"


FULLY_CONNECTED = (("classifier.0", "classifier.3"), ("pre_logits.fc1", "pre_logits.fc2"))
"""fc6 and fc7 of VGG16, by torchvision's names and by timm's."""


def subsample_fc(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A VGG16's weights with conv6 and conv7 in place of fc6 and fc7, as SSD starts them.

    Liu et al. 2016, §3: fc6 sees 7×7 positions of 512 channels and has 4096 outputs. Every third position
    each way and every fourth output make a 3×3 convolution, [4096, 512·7·7] → [1024, 512, 3, 3]. fc7 has the
    same outputs as inputs, [4096, 4096] → [1024, 1024, 1, 1]. None without such layers of those sizes.
    """
    for fc6, fc7 in FULLY_CONNECTED:
        layers = {
            f"{fc}.{kind}": weights.get(f"{fc}.{kind}") for fc in (fc6, fc7) for kind in ("weight", "bias")
        }
        sizes = [0 if tensor is None else tensor.numel() for tensor in layers.values()]
        if sizes == [4096 * 512 * 7 * 7, 4096, 4096 * 4096, 4096]:
            first = weights[f"{fc6}.weight"].reshape(4096, 512, 7, 7)
            second = weights[f"{fc7}.weight"].reshape(4096, 4096, 1, 1)
            return {name: tensor for name, tensor in weights.items() if name not in layers} | {
                "conv6.weight": first[::4, :, ::3, ::3],
                "conv6.bias": weights[f"{fc6}.bias"][::4],
                "conv7.weight": second[::4, ::4],
                "conv7.bias": weights[f"{fc7}.bias"][::4],
            }
    return None


def _has_all(trunk: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether all of VGG16's convolutions are given: the fc6 and fc7 of another VGG are others."""
    own = {name: tensor.shape for name, tensor in trunk.state_dict().items() if name.startswith("features.")}
    return all(name in weights and weights[name].shape == shape for name, shape in own.items())


def _in_pyramid(name: str, own: Mapping[str, Any]) -> str:
    """The name here of a tensor of torchvision's backbone; any other as it is."""
    inner = INNER + name.removeprefix("backbone.body.")
    return inner if name.startswith("backbone.body.") and inner in own else name


def _backbone(detector: Any) -> nn.Module:
    """The module whose tensors have the names of a classifier's."""
    body = detector.backbone
    for inner in ("trunk", "body", "pyramid"):  # of StairNet, an FPN, MobileNet's SSD
        body = getattr(body, inner, body)
    found: nn.Module = body.model if isinstance(body, Pyramid) else body
    if isinstance(detector.backbone, C4):
        found = copy.copy(found)  # it with its last stage, which is the head's, of the very same tensors
        found._modules = found._modules | {"layer4": detector.roi_heads.box_head.layer4}
    return found
