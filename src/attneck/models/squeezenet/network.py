"""SqueezeNet 1.1 (Iandola et al. 2016), one of BAM's networks for small budgets (BAM §4.3).

Letters: B batch, H'×W' the last map.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from attneck.models import parts
from attneck.models.squeezenet import SqueezeNetOptions
from attneck.models.staged import StagedNet


class SqueezeNet(StagedNet):
    """torchvision's SqueezeNet 1.1: its `Fire` modules, and its names.

    The classifier is a 1×1 conv with ReLU. pool="logits" applies it to the last map and averages its result;
    pool="features" averages the map first. BAM stands after fire3 and fire5, before the pools.
    """

    def __init__(self, options: SqueezeNetOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = [
            ("0", nn.Conv2d(in_chans, 64, 3, 2, options.stem_padding)),
            ("1", nn.ReLU(inplace=True)),
            ("2", _pool()),
            ("3", Fire(64, 16, 64, 64)),
            ("4", Fire(128, 16, 64, 64)),
            ("5", _pool()),
            ("6", Fire(128, 32, 128, 128)),
            ("7", Fire(256, 32, 128, 128)),
            ("8", _pool()),
            ("9", Fire(256, 48, 192, 192)),
            ("10", Fire(384, 48, 192, 192)),
            ("11", Fire(384, 64, 256, 256)),
            ("12", Fire(512, 64, 256, 256)),
        ]
        ends = {1: "1", 4: "4", 7: "7", 12: "12"}
        if options.bam == "stages":
            layers.insert(8, ("bam5", parts.bam(256, options)))
            layers.insert(5, ("bam3", parts.bam(128, options)))
            ends |= {4: "bam3", 7: "bam5"}
        self.features = nn.Sequential(OrderedDict(layers))
        self.row = [f"features.{name}" for name, _ in layers]
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": f"features.{name}"}
            for channels, reduction, name in zip(
                (64, 128, 256, 512), (2, 4, 8, 16), ends.values(), strict=True
            )
        ]
        self.num_features = 512
        self.pool, self.dropout = options.pool, options.dropout
        self.reset_classifier(num_classes)
        for module in self.features.modules():
            if isinstance(module, Fire):
                _initialise(module)
        _initialise(self.features[0])

    def get_classifier(self) -> nn.Module:
        """The 1×1 conv: [B, num_features, H', W'] → [B, num_classes, H', W']."""
        return self.classifier[1] if self.num_classes else self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of `num_classes` (0: none)."""
        self.num_classes = num_classes
        self.classifier = nn.Sequential()
        if num_classes:
            conv: Any = nn.Conv2d(self.num_features, num_classes, 1)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
            self.classifier.extend([nn.Dropout(self.dropout), conv, nn.ReLU(inplace=True)])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, H', W'] → logits [B, num_classes], or the averaged features."""
        if pre_logits or not self.num_classes:
            return x.mean(dim=(2, 3))
        if self.pool == "features":
            x = x.mean(dim=(2, 3), keepdim=True)
        return self.classifier(x).mean(dim=(2, 3))


def build_squeezenet(
    options: SqueezeNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> SqueezeNet:
    """A `SqueezeNet`, BAM in it where asked for."""
    return SqueezeNet(options, num_classes, in_chans)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _initialise(module: nn.Module) -> None:
    """torchvision's start for SqueezeNet's convs."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
