"""The feature pyramid of both R-CNNs (Lin et al. 2017; BoTNet §4.1, footnote 7).

Letters: B batch, C channels of the pyramid, H×W the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from attneck.models.features import Pyramid


class FPN(nn.Module):
    """x [B, 3, H, W] → maps of C channels, {"0": p2, "1": p3, "2": p4, "3": p5, "pool": p6}, finest first.

    p6 is every second position of p5, as in Detectron, unless `last` makes it. It has the interface of
    torchvision's backbones, so torchvision's other detectors take it too.

    Attributes:
        body: the backbone, x → c2 to c5.
        out_channels: C.
        reductions: the stride of each map, in pixels of the image.

    Args:
        backbone: a model that `Pyramid` takes (the catalog's, timm's, either changed by surgery); timm's
            `features_only=True`, whatever it gives its maps as; or any module that returns a list of maps,
            finest first, and has their `channels` and `reductions`. The last four maps are used.
        channels: C.
        norm_layer: after each convolution, BatchNorm (A.2); None for biases in its place, as in Lin et al.
        last: (channels, the number of maps) → what makes p6, as in torchvision's pyramid.

    Raises:
        ValueError: a backbone that is none of these.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int = 256,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        last: Callable[[int, int], ExtraFPNBlock] = lambda channels, levels: LastLevelMaxPool(),
    ) -> None:
        super().__init__()
        self.body: Any = backbone
        info: Any = getattr(backbone, "feature_info", None)
        if isinstance(info, FeatureInfo):
            widths, reductions = info.channels(), info.reduction()
        else:
            if not (hasattr(backbone, "channels") and hasattr(backbone, "reductions")):
                self.body = Pyramid(backbone)
            widths, reductions = self.body.channels, self.body.reductions
        # As timm's Swin Transformers and the like say it.
        self.channels_come_last = "NHWC" in str(getattr(backbone, "output_fmt", ""))
        widths, reductions = list(widths)[-4:], list(reductions)[-4:]
        self.fpn = FeaturePyramidNetwork(widths, channels, last(channels, len(widths)), norm_layer)
        self.out_channels = channels
        self.names = [str(level) for level in range(len(widths))]
        self.reductions = [*reductions, 2 * reductions[-1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, 3, H, W] → one map for each name, [B, C, ~H / reduction, ~W / reduction]."""
        found = self.body(x)
        maps = list(found.values() if isinstance(found, dict) else found)[-len(self.names) :]
        if self.channels_come_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        pyramid: dict[str, Tensor] = self.fpn(dict(zip(self.names, maps, strict=True)))
        return pyramid
