"""MobileNet v1 (Howard et al. 2017), one of BAM's networks for small budgets (BAM §4.3)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from attneck.models import parts
from attneck.models.mobilenet import MobileNetOptions
from attneck.models.staged import StagedNet

# Howard et al. 2017, Table 1: the widths of each stage's blocks; each stage but the first begins by striding.
MOBILENET_STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class DepthwiseSeparable(nn.Sequential):
    """3×3 depthwise conv with the stride, BN, ReLU, 1×1 conv, BN, ReLU: [B, C, H, W] → [B, out, H', W']."""

    def __init__(self, channels: int, out: int, stride: int, dilation: int = 1) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(
                    channels, channels, 3, stride, dilation, dilation, groups=channels, bias=False
                ),
                bn1=nn.BatchNorm2d(channels),
                act1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(channels, out, 1, bias=False),
                bn2=nn.BatchNorm2d(out),
                act2=nn.ReLU(inplace=True),
            )
        )


class MobileNet(StagedNet):
    """3×3 stem with stride 2, stages `layer1`…`layer5` at 1/2 … 1/32, global pool, `fc`.

    From the stage on that would go beyond `output_stride`, nothing strides: the 3×3 convs that would have
    seen a smaller map are dilated.
    """

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
        reduction, dilation = 2, 1
        for index, widths in enumerate(MOBILENET_STAGES):
            blocks = []
            strides = index > 0 and reduction < options.output_stride
            # The conv that would have strided sees the map that it always saw; the others, one twice as fine.
            before, dilation = dilation, dilation if strides or index == 0 else 2 * dilation
            reduction *= 2 if strides else 1
            for number, width in enumerate(widths):
                first = number == 0
                stride = 2 if strides and first else 1
                blocks.append(
                    DepthwiseSeparable(channels, scaled(width), stride, before if first else dilation)
                )
                channels = scaled(width)
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
        self.row = ["conv1", "bn1", "act1", *(info["module"] for info in self.feature_info)]
        self.num_features = channels
        self.make_head(num_classes, options.global_pool, options.dropout)
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
