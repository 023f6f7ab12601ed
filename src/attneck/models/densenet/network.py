"""DenseNet-BC for 32×32 images (Huang et al. 2017; BAM §4.2), from torchvision's blocks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torchvision.models.densenet import _DenseBlock, _Transition

from attneck.models import parts
from attneck.models.densenet import DenseNetOptions
from attneck.models.staged import PREVIOUS, StagedNet


class DenseNet(StagedNet):
    """3×3 stem of 2k, stages `layer1`…, BN, ReLU, global pool, `fc`.

    A stage is a transition, which halves channels and map (none in the first), and a dense block. A BAM
    follows each transition, and each dense block that a transition follows.
    """

    def __init__(self, options: DenseNetOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()
        channels = 2 * options.growth
        self.conv1 = nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False)
        self.feature_info = []
        for index, depth in enumerate(options.depths):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            if index > 0:
                stage["transition"] = _Transition(channels, channels // 2)
                channels //= 2
                if options.bam == "stages":
                    stage["transition_bam"] = parts.bam(channels, options)
            stage["block"] = _DenseBlock(
                depth, channels, bn_size=4, growth_rate=options.growth, drop_rate=0.0
            )
            channels += depth * options.growth
            if options.bam == "stages" and index < len(options.depths) - 1:
                stage["bam"] = parts.bam(channels, options)
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(stage))
            self.feature_info.append({"num_chs": channels, "reduction": 2**index, "module": name})
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.row = ["conv1", *(info["module"] for info in self.feature_info), "norm", "act"]
        self.num_features = channels
        self.make_head(num_classes, options.global_pool, options.dropout)
        self.apply(_initialise)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As the base's; a transition and its BAM come before the dense layers, a BAM belongs to the last."""
        blocks: list[tuple[str, tuple[int, ...] | None]] = [(r"^layer(\d+)", None)]
        if not coarse:
            blocks = [
                (r"^layer(\d+)\.block\.denselayer(\d+)", None),
                (r"^layer(\d+)\.transition", (0,)),
                (r"^layer(\d+)\.bam", PREVIOUS),
            ]
        return {"stem": r"^conv1\.", "blocks": [*blocks, (r"^norm\.", PREVIOUS)]}


def _initialise(module: nn.Module) -> None:
    """DenseNet's own start for its bias-free convs; BAM's keep theirs."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight)


def build_densenet(
    options: DenseNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> DenseNet:
    """A `DenseNet`, BAM in it where asked for."""
    return DenseNet(options, num_classes, in_chans)
