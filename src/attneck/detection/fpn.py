"""The feature pyramid that both R-CNNs stand on (Lin et al. 2017; BoTNet §4.1, footnote 7).

Letters: B batch, C channels of the pyramid, H×W the image.
"""

from __future__ import annotations

from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from attneck.models.features import Pyramid


class FPN(nn.Module):
    """x [B, 3, H, W] → maps of C channels, {"0": p2, "1": p3, "2": p4, "3": p5, "pool": p6}, finest first.

    p6 is every other cell of p5, as in Detectron. Each convolution has BatchNorm behind it (A.2). It has the
    interface of torchvision's backbones, so its other detectors stand on it too.

    Attributes:
        body: what makes the maps c2 to c5.
        out_channels: C.
        reductions: the pixels that a cell of each map stands for, along each side.

    Args:
        backbone: a model that `Pyramid` takes (the catalog's, timm's, either changed by surgery); timm's
            `features_only=True`; or any module that makes a list of maps, finest first, and says of what
            `channels` and `reductions` they are. The last four are used.
        channels: C.

    Raises:
        ValueError: none of these.
    """

    def __init__(self, backbone: nn.Module, channels: int = 256) -> None:
        super().__init__()
        self.body: Any = backbone
        info: Any = getattr(backbone, "feature_info", None)
        if isinstance(info, FeatureInfo):
            widths, reductions = info.channels(), info.reduction()
        else:
            if not (hasattr(backbone, "channels") and hasattr(backbone, "reductions")):
                self.body = Pyramid(backbone)
            widths, reductions = self.body.channels, self.body.reductions
        widths, reductions = list(widths)[-4:], list(reductions)[-4:]
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), nn.BatchNorm2d)
        self.out_channels = channels
        self.names = [str(level) for level in range(len(widths))]
        self.reductions = [*reductions, 2 * reductions[-1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, 3, H, W] → one map a name, [B, C, ~H / reduction, ~W / reduction] each."""
        maps = self.body(x)[-len(self.names) :]
        pyramid: dict[str, Tensor] = self.fpn(dict(zip(self.names, maps, strict=True)))
        return pyramid
