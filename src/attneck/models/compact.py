"""The networks for small budgets that BAM is tried on (BAM §4.3): MobileNet v1 and SqueezeNet 1.1."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from attneck.models import parts
from attneck.models.options import MobileNetOptions, SqueezeNetOptions
from attneck.models.staged import StagedNet

# Howard et al. 2017, Table 1: the widths of each stage's blocks; each stage but the first begins by striding.
MOBILENET_STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class DepthwiseSeparable(nn.Sequential):
    """3×3 depthwise conv with the stride, BN, ReLU, 1×1 conv, BN, ReLU: [B, C, H, W] → [B, out, H', W']."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
                bn1=nn.BatchNorm2d(channels),
                act1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(channels, out, 1, bias=False),
                bn2=nn.BatchNorm2d(out),
                act2=nn.ReLU(inplace=True),
            )
        )


class MobileNet(StagedNet):
    """3×3 stem with stride 2, stages `layer1`…`layer5` at 1/2 … 1/32, global average pool, `fc`."""

    def __init__(self, options: MobileNetOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()

        def scaled(width: int) -> int:
            # Rounded first: 0.7 · 10 is a hair below 7 in binary.
            return max(1, int(round(width * options.alpha, 6)))

        channels = scaled(32)
        self.conv1 = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = []
        for index, widths in enumerate(MOBILENET_STAGES):
            blocks = []
            for number, width in enumerate(widths):
                stride = 2 if index > 0 and number == 0 else 1
                blocks.append(DepthwiseSeparable(channels, scaled(width), stride))
                channels = scaled(width)
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": 2 ** (index + 1), "module": name})
        self.row = ["conv1", "bn1", "act1", *(info["module"] for info in self.feature_info)]
        self.num_features = channels
        self.drop = nn.Dropout(options.dropout)
        self.reset_classifier(num_classes)
        self.initialise()


def build_mobilenet(
    options: MobileNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> MobileNet:
    """A `MobileNet`, with a BAM at the end of the stages of 128, 256 and 512 channels where asked for."""
    model = MobileNet(options, num_classes, in_chans)
    if options.bam == "stages":
        bottlenecks = model.feature_info[1:4]
        stages = [model.get_submodule(info["module"]) for info in bottlenecks]
        parts.append_bam(stages, [info["num_chs"] for info in bottlenecks], options)
    return model


class SqueezeNet(StagedNet):
    """SqueezeNet 1.1 (Iandola et al. 2016) of torchvision's cells by torchvision's names.

    The classifier is a 1×1 conv with ReLU on the last map, averaged after; with pool="features" on the
    average of the map. BAM stands before the pools behind fire3 and fire5.
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
